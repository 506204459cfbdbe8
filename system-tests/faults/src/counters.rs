//! Counters of processes that come and go: each is read every half second, and what a killed one had counted is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};

/// What is added up over the lives of all processes.
const COUNTED: [&str; 4] = [
    "millrace_events_duplicate_total",
    "millrace_writes_superseded_total",
    "millrace_events_parked_total",
    "millrace_sequence_gaps_total",
];

/// Totals of the counters, by name.
pub struct Counters {
    totals: Arc<Mutex<HashMap<&'static str, f64>>>,
    urls: Arc<Mutex<Vec<String>>>,
    _ends_with_it: DropGuard,
}

// === impl Counters ===

impl Counters {
    pub fn start(urls: Vec<String>) -> anyhow::Result<Self> {
        let totals = Arc::new(Mutex::new(HashMap::new()));
        let urls = Arc::new(Mutex::new(urls));
        let client = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
        let stopped = CancellationToken::new();
        let watch = watch(client, urls.clone(), totals.clone());
        tokio::spawn(stopped.clone().run_until_cancelled_owned(watch));
        Ok(Self { totals, urls, _ends_with_it: stopped.drop_guard() })
    }

    /// Processes that were added later.
    pub fn also(&self, url: String) {
        self.urls.lock().unwrap_or_else(PoisonError::into_inner).push(url);
    }

    pub fn total(&self, metric: &str) -> u64 {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner).get(metric).copied().unwrap_or(0.0) as u64
    }
}

async fn watch(client: reqwest::Client, urls: Arc<Mutex<Vec<String>>>, totals: Arc<Mutex<HashMap<&'static str, f64>>>) {
    let mut last: HashMap<(String, &'static str), f64> = HashMap::new();
    loop {
        let asked = urls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for url in asked {
            let Ok(answer) = client.get(format!("{url}/metrics")).send().await else { continue };
            let Ok(text) = answer.text().await else { continue };
            for metric in COUNTED {
                let now = sum(&text, metric);
                let before = last.insert((url.clone(), metric), now).unwrap_or(0.0);
                // A counter that is lower than it was is another process's.
                let more = if now >= before { now - before } else { now };
                *totals.lock().unwrap_or_else(PoisonError::into_inner).entry(metric).or_default() += more;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A metric in Prometheus text, all its labels added up.
pub fn sum(text: &str, metric: &str) -> f64 {
    let is_it = |line: &&str| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' ']));
    text.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_added_up_and_longer_names_are_not() {
        let text = "# HELP a x\na{p=\"1\"} 2\na{p=\"2\"} 3\na_b 7\n";
        assert_eq!(sum(text, "a"), 5.0);
        assert_eq!(sum(text, "a_b"), 7.0);
        assert_eq!(sum(text, "c"), 0.0);
    }
}
