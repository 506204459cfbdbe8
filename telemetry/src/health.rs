//! Readiness by component: a process is ready when each of its components says so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// The components of a process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<String, Line>>>,
}

/// One component's line in the health report.
#[derive(Debug, Clone)]
pub struct ComponentHealth {
    name: String,
    health: Health,
    /// Shared with its parts.
    is_beside: Arc<AtomicBool>,
}

/// What `/readyz` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    pub ready: bool,
    /// Component to `ready`, or why it is not.
    pub components: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Line {
    state: State,
    is_beside: Arc<AtomicBool>,
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
        self.add(name.into(), Arc::default())
    }

    fn add(&self, name: String, is_beside: Arc<AtomicBool>) -> ComponentHealth {
        let component = ComponentHealth { name, health: self.clone(), is_beside };
        component.not_ready("starting");
        component
    }

    pub fn report(&self) -> HealthReport {
        let components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        HealthReport {
            ready: !components.values().any(Line::holds_up),
            components: components
                .iter()
                .map(|(name, line)| {
                    let text = match &line.state {
                        State::Ready => "ready".to_owned(),
                        State::Degraded(why) | State::NotReady(why) => why.clone(),
                    };
                    (name.clone(), text)
                })
                .collect(),
        }
    }

    fn set(&self, component: &ComponentHealth, state: State) {
        let line = Line { state, is_beside: Arc::clone(&component.is_beside) };
        self.components.lock().unwrap_or_else(PoisonError::into_inner).insert(component.name.clone(), line);
    }
}

// === impl Line ===

impl Line {
    fn holds_up(&self) -> bool {
        matches!(self.state, State::NotReady(_)) && !self.is_beside.load(Ordering::Relaxed)
    }
}

// === impl ComponentHealth ===

impl ComponentHealth {
    pub fn ready(&self) {
        self.health.set(self, State::Ready);
    }

    /// Says what it cannot do, and that it is ready for the rest.
    pub fn degraded(&self, why: impl Into<String>) {
        self.health.set(self, State::Degraded(why.into()));
    }

    /// A component beside this one, named after it, not ready until it says so.
    pub fn part(&self, name: &str) -> ComponentHealth {
        self.companion(format!("{} {name}", self.name))
    }

    /// A component of another name that counts and goes as this one does, not ready until it says so.
    pub fn companion(&self, name: impl Into<String>) -> ComponentHealth {
        self.health.add(name.into(), Arc::clone(&self.is_beside))
    }

    /// Whether it, with its parts, only runs beside what the process is for: then it is told of, and the process is
    /// ready without it.
    pub fn set_beside(&self, is_beside: bool) {
        self.is_beside.store(is_beside, Ordering::Relaxed);
    }

    /// Takes it, with its parts, out of the report: there is no such component any more.
    pub fn remove(&self) {
        let mut components = self.health.components.lock().unwrap_or_else(PoisonError::into_inner);
        components.retain(|_, line| !Arc::ptr_eq(&line.is_beside, &self.is_beside));
    }

    /// Says why not, for whoever reads `/readyz`.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.health.set(self, State::NotReady(why.into()));
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

    #[test]
    fn a_component_that_runs_beside_holds_nothing_up_and_can_go() {
        let health = Health::default();
        let shadow = health.component("stock@2 projector");
        let lag = shadow.part("lag");
        let _indexer = shadow.companion("search@2 indexer");
        health.component("stock projector").ready();
        assert!(!health.report().ready);
        shadow.set_beside(true);
        lag.not_ready("far behind");
        let report = health.report();
        assert!(report.ready);
        assert_eq!(report.components["stock@2 projector lag"], "far behind");
        shadow.set_beside(false);
        assert!(!health.report().ready);
        shadow.remove();
        assert_eq!(health.report().components.keys().collect::<Vec<_>>(), ["stock projector"]);
        assert!(health.report().ready);
    }
}
