//! Readiness by component: a process is ready when each of its components says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// The components of a process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<String, State>>>,
}

/// One component's line in the health report.
#[derive(Debug, Clone)]
pub struct ComponentHealth {
    name: String,
    health: Health,
}

/// What `/readyz` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    pub ready: bool,
    /// Component to `ready`, or why it is not.
    pub components: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
enum State {
    Ready,
    /// A part of its work it can not do, and says which; the rest it does.
    Degraded(String),
    NotReady(String),
}

// === impl Health ===

impl Health {
    /// Adds a component, which is not ready until it says so.
    pub fn component(&self, name: impl Into<String>) -> ComponentHealth {
        let component = ComponentHealth { name: name.into(), health: self.clone() };
        component.not_ready("starting");
        component
    }

    pub fn report(&self) -> HealthReport {
        let components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        HealthReport {
            ready: !components.values().any(|state| matches!(state, State::NotReady(_))),
            components: components
                .iter()
                .map(|(name, state)| {
                    let text = match state {
                        State::Ready => "ready".to_owned(),
                        State::Degraded(why) | State::NotReady(why) => why.clone(),
                    };
                    (name.clone(), text)
                })
                .collect(),
        }
    }

    fn set(&self, name: &str, state: State) {
        self.components.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), state);
    }
}

// === impl ComponentHealth ===

impl ComponentHealth {
    pub fn ready(&self) {
        self.health.set(&self.name, State::Ready);
    }

    /// Says what it cannot do, and that it is ready for the rest.
    pub fn degraded(&self, why: impl Into<String>) {
        self.health.set(&self.name, State::Degraded(why.into()));
    }

    /// A component beside this one, named after it, not ready until it says so.
    pub fn part(&self, name: &str) -> ComponentHealth {
        self.health.component(format!("{} {name}", self.name))
    }

    /// Says why not, for whoever reads `/readyz`.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.health.set(&self.name, State::NotReady(why.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_all_its_components_are() {
        let health = Health::default();
        let relay = health.component("relay");
        let store = health.component("event store");
        relay.ready();
        assert!(!health.report().ready);
        store.ready();
        assert!(health.report().ready);
        relay.not_ready("event log does not answer");
        let report = health.report();
        assert!(!report.ready);
        assert_eq!(report.components["relay"], "event log does not answer");
        relay.degraded("one of two topics is halted");
        let report = health.report();
        assert!(report.ready);
        assert_eq!(report.components["relay"], "one of two topics is halted");
    }
}
