//! A fault as a scenario: what it needs, what is done, and how long all of it may take.

use std::time::Duration;

use futures::future::LocalBoxFuture;

use crate::servers::Needs;
use crate::system::Reach;
use crate::trial::Trial;

/// Where Millrace runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// One process per role, and so many brokers.
    Servers(Reach, usize),
    /// One process on files.
    Files,
}

/// Injects the fault, heals it, and says what it expected beside what the oracle checks.
pub type Inject = for<'t> fn(&'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>>;

pub struct Scenario {
    /// The row of the list of faults; 0 for what is none of them.
    pub number: u32,
    /// Tells scenarios of one row apart; empty for its first.
    pub variant: &'static str,
    pub fault: &'static str,
    pub on: On,
    pub bound: Duration,
    /// One command of so many is given twice.
    pub duplicates: u32,
    /// Whether some commands come by topic; not where the fault takes the topics away.
    pub topic_commands: bool,
    /// The store whose data lies on a small disk of its own.
    pub disk: Option<Store>,
    /// Whether the processes live by a clock that can be set.
    pub clock: bool,
    /// The read model that is replayed: readers and commands come at a steady rate, and are looked at more closely.
    pub replayed: Option<&'static str>,
    /// What `--rate` is divided by where a read model is replayed.
    pub rate_divisor: u64,
    pub inject: Inject,
}

/// What keeps data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Postgres,
    Kafka,
    Redis,
    Search,
    /// Everything, in one process on files.
    Files,
}

// === impl Scenario ===

impl Scenario {
    pub const fn new(number: u32, fault: &'static str, inject: Inject) -> Self {
        let bound = Duration::from_secs(180);
        let on = On::Servers(Reach::Direct, 1);
        Self {
            number,
            variant: "",
            fault,
            on,
            bound,
            duplicates: 50,
            topic_commands: true,
            disk: None,
            clock: false,
            replayed: None,
            rate_divisor: 1,
            inject,
        }
    }

    pub const fn variant(mut self, variant: &'static str) -> Self {
        self.variant = variant;
        self
    }

    pub const fn on(mut self, on: On) -> Self {
        self.on = on;
        self
    }

    pub const fn duplicates(mut self, one_of: u32) -> Self {
        self.duplicates = one_of;
        self
    }

    pub const fn without_topic_commands(mut self) -> Self {
        self.topic_commands = false;
        self
    }

    pub const fn disk(mut self, of: Store) -> Self {
        self.disk = Some(of);
        self
    }

    pub const fn clock(mut self) -> Self {
        self.clock = true;
        self
    }

    /// How long all of it may take, load and comparison included.
    pub const fn within(mut self, seconds: u64) -> Self {
        self.bound = Duration::from_secs(seconds);
        self
    }

    pub const fn replayed(mut self, model: &'static str) -> Self {
        self.replayed = Some(model);
        self.within(900)
    }

    /// Where so much stands still that a slow machine would never catch up with commands at the whole rate.
    pub const fn rate_divisor(mut self, divisor: u64) -> Self {
        self.rate_divisor = divisor;
        self
    }

    /// `7`, or `7-files` for a variant; what is no row of the list has its variant alone.
    pub fn id(&self) -> String {
        match self.variant {
            "" => self.number.to_string(),
            variant if self.number == 0 => variant.to_owned(),
            variant => format!("{}-{variant}", self.number),
        }
    }

    pub fn needs(&self) -> Needs {
        match self.on {
            On::Servers(reach, brokers) => Needs { brokers, cluster: reach == Reach::Cluster },
            On::Files => Needs { brokers: 1, cluster: false },
        }
    }
}
