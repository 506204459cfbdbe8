//! Telemetry: log lines, metrics, health and the end of a process, the same for every role.

mod health;
mod logging;
mod routes;
mod shutdown;

pub use health::{ComponentHealth, Health, HealthReport};
pub use logging::{LogFormat, LoggingError, init_logging};
pub use metrics_exporter_prometheus::PrometheusHandle;
pub use routes::{MetricsError, install_metrics, router};
pub use shutdown::{drain, shutdown_on_signal};

/// Names of the spans at the ten stops of an event's path, in their order: the same names stand at the top of
/// `docs/architecture.md`.
pub const STOPS: [&str; 10] =
    ["route", "handle", "decide", "append", "relay_batch", "publish", "partition_worker", "project", "apply", "read"];
