use super::*;

async fn process() -> Process {
    // Not `on`: the metrics recorder and the signals belong to the whole test program.
    let metrics = metrics_of_test();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Process { health: Health::default(), shutdown: CancellationToken::new(), metrics, listener, parts: JoinSet::new() }
}

fn metrics_of_test() -> PrometheusHandle {
    static METRICS: std::sync::OnceLock<PrometheusHandle> = std::sync::OnceLock::new();
    METRICS.get_or_init(|| telemetry::install_metrics().unwrap()).clone()
}

/// Until `/readyz` names the component with this text.
async fn until_said(address: SocketAddr, wanted: &str) -> String {
    let url = format!("http://{address}/readyz");
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
    let said = async {
        loop {
            if let Ok(answer) = client.get(&url).send().await {
                let text = answer.text().await.unwrap();
                if text.contains(wanted) {
                    return text;
                }
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), said).await.unwrap()
}

#[tokio::test]
async fn a_failed_part_is_not_ready_and_the_others_go_on() {
    let mut process = process().await;
    let (address, shutdown) = (process.address().unwrap(), process.shutdown.clone());
    let fails = process.health.component("projector");
    process.spawn_component("projector", fails, OnFailure::StayDown, async { anyhow::bail!("damaged rows") });
    let panics = process.health.component("indexer");
    process.spawn_component("indexer", panics, OnFailure::StayDown, async { panic!("out of range") });
    let works = process.health.component("relay");
    works.ready();
    let until = shutdown.clone();
    process.spawn_component("relay", works, OnFailure::StayDown, async move {
        until.cancelled().await;
        Ok(())
    });
    let serving = tokio::spawn(process.serve(Router::new()));
    let text = until_said(address, "panicked").await;
    let text = if text.contains("damaged rows") { text } else { until_said(address, "damaged rows").await };
    assert!(text.contains("\"relay\":\"ready\""), "{text}");
    assert!(!serving.is_finished() && !shutdown.is_cancelled());
    shutdown.cancel();
    assert_eq!(serving.await.unwrap().unwrap(), Exit::Done);
}

#[tokio::test]
async fn who_misses_is_told_where_the_addresses_are() {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
    for (routes, told) in [
        (Router::new(), "/healthz, /readyz and /metrics"),
        (crate::roles::parts::openapi(&[crate::roles::parts::REPLAYS]), "/openapi.json lists"),
    ] {
        let process = process().await;
        let (address, shutdown) = (process.address().unwrap(), process.shutdown.clone());
        let is_described = routes.has_routes();
        let serving = tokio::spawn(process.serve(routes));
        let answer = client.get(format!("http://{address}/v2")).send().await.unwrap();
        assert_eq!(answer.status(), 404);
        let text = answer.text().await.unwrap();
        assert!(text.contains(told), "{text}");
        let document = client.get(format!("http://{address}/openapi.json")).send().await.unwrap();
        assert_eq!(document.status() == 200, is_described);
        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_part_that_a_process_is_for_ends_it() {
    let mut process = process().await;
    let health = process.health.component("projector");
    process.spawn_component("projector", health, OnFailure::EndProcess, async { anyhow::bail!("damaged rows") });
    assert_eq!(process.serve(Router::new()).await.unwrap(), Exit::Failed);
}

#[tokio::test]
async fn what_ends_badly_or_late_is_not_done() {
    let mut process = self::process().await;
    let shutdown = process.shutdown.clone();
    let (until, health) = (shutdown.clone(), process.health.component("relay"));
    process.spawn_component("relay", health, OnFailure::StayDown, async move {
        until.cancelled().await;
        anyhow::bail!("positions are not saved")
    });
    shutdown.cancel();
    assert_eq!(process.serve(Router::new()).await.unwrap(), Exit::Failed);

    let mut process = self::process().await;
    process.spawn("stuck", std::future::pending());
    process.shutdown.cancel();
    let begun = std::time::Instant::now();
    assert_eq!(process.serve(Router::new()).await.unwrap(), Exit::Failed);
    assert!(begun.elapsed() + crate::BLOCKING_END < Duration::from_secs(10), "{:?}", begun.elapsed());
}
