//! A simulated process: what its calls of ports go through. It can die, and it can be frozen while the world goes on.
//!
//! A dead process is one whose calls never have an effect and never return. Its tasks are dropped too, but a task that
//! lingers can do no harm: the ports are all that it can touch.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::world::{Fault, Place, World};

/// One life of a process. Cheap to clone.
#[derive(Clone)]
pub struct Process(Arc<Inner>);

struct Inner {
    world: Arc<World>,
    name: &'static str,
    dead: CancellationToken,
    frozen: Mutex<Option<Frozen>>,
    died: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy)]
struct Frozen {
    since: Instant,
    until: Instant,
}

/// A call that has begun.
#[derive(Debug, Clone, Copy)]
#[must_use = "a call ends with its answer"]
pub struct Call {
    pub place: Place,
    pub fault: Option<Fault>,
}

/// The call failed; whether it had its effect, the caller cannot know.
#[derive(Debug, Clone, Copy)]
pub struct Lost(pub &'static str);

/// Makes a call that its caller can give up and not take back: what was sent arrives, whatever became of the sender.
pub async fn deliver<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(call).await {
        Ok(answer) => answer,
        // The world ends.
        Err(_) => std::future::pending().await,
    }
}

// === impl Process ===

impl Process {
    pub fn new(world: Arc<World>, name: &'static str) -> Self {
        let inner =
            Inner { world, name, dead: CancellationToken::new(), frozen: Mutex::new(None), died: Mutex::new(None) };
        Self(Arc::new(inner))
    }

    pub fn name(&self) -> &'static str {
        self.0.name
    }

    pub fn world(&self) -> &Arc<World> {
        &self.0.world
    }

    pub fn crash(&self, why: &str) {
        if self.is_dead() {
            return;
        }
        *self.0.died.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.0.world.count(|stats| stats.crashes += 1);
        self.0.world.trace(|| format!("{} dies ({why})", self.0.name));
        self.0.dead.cancel();
    }

    /// Ends a life that is over anyway: its ports are of no use to anybody.
    pub fn retire(&self) {
        self.0.died.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        self.0.dead.cancel();
    }

    pub fn is_dead(&self) -> bool {
        self.0.dead.is_cancelled()
    }

    pub async fn died(&self) {
        self.0.dead.cancelled().await;
    }

    pub fn freeze(&self, time: Duration) {
        let now = Instant::now();
        self.0.world.count(|stats| stats.freezes += 1);
        self.0.world.trace(|| format!("{} freezes for {:.1} s", self.0.name, time.as_secs_f64()));
        *self.frozen() = Some(Frozen { since: now, until: now + time });
    }

    fn frozen(&self) -> std::sync::MutexGuard<'_, Option<Frozen>> {
        self.0.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long nothing was heard of it: since it froze or died.
    pub fn silent_for(&self) -> Duration {
        if let Some(died) = *self.0.died.lock().unwrap_or_else(PoisonError::into_inner) {
            return died.elapsed();
        }
        match *self.frozen() {
            Some(frozen) if Instant::now() < frozen.until => frozen.since.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Waits while the process is frozen; for good once it is dead.
    pub async fn awake(&self) {
        loop {
            if self.is_dead() {
                return std::future::pending().await;
            }
            let until = match *self.frozen() {
                Some(frozen) if Instant::now() < frozen.until => frozen.until,
                _ => return,
            };
            tokio::time::sleep_until(until).await;
        }
    }

    /// Takes some time of a call.
    pub async fn spend(&self, time: Duration) {
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        self.awake().await;
    }

    /// A call's way to its port.
    pub async fn begin(&self, operation: &'static str) -> Result<Call, Lost> {
        self.begin_as(operation, true).await
    }

    /// A call that is part of waiting, and takes no time of its own.
    pub async fn begin_as(&self, operation: &'static str, may_fail: bool) -> Result<Call, Lost> {
        self.awake().await;
        let world = &self.0.world;
        let (place, fault) = world.next_call(self.0.name, operation, may_fail);
        if let Some(fault) = fault {
            world.trace(|| format!("{place}: {fault}"));
        }
        let mut time = world.latency(place, 0);
        if fault == Some(Fault::Slow) {
            time += Duration::from_millis(1_000 + world.dice(place, 2) % 9_000);
        }
        // On its way nothing of its process can hold it back any more.
        if time.is_zero() {
            // A port that never waits would let nobody else run.
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(time).await;
        }
        match fault {
            Some(Fault::Refused) => Err(Lost("the connection was refused")),
            Some(Fault::CrashBefore) => {
                self.crash("before a call");
                std::future::pending().await
            }
            _ => Ok(Call { place, fault }),
        }
    }

    /// A call's way back.
    pub async fn finish(&self, call: Call) -> Result<(), Lost> {
        match call.fault {
            Some(Fault::CrashAfter) => {
                self.crash("after a call");
                return std::future::pending().await;
            }
            Some(Fault::AnswerLost) => {
                self.spend(Duration::from_millis(200)).await;
                return Err(Lost("the answer did not come in time"));
            }
            _ => {}
        }
        self.spend(self.0.world.latency(call.place, 1)).await;
        Ok(())
    }
}
