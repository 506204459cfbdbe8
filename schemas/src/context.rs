//! Bounded contexts and the topics that belong to each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A bounded context of the write side: owner of its commands, streams and topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Context {
    Catalogue,
    Inventory,
    Pricing,
    /// Millrace's own operation: what was decided on read models. No projection reads its events.
    Platform,
}

// === impl Context ===

impl Context {
    pub const ALL: [Context; 4] = [Context::Catalogue, Context::Inventory, Context::Pricing, Context::Platform];

    pub const fn as_str(self) -> &'static str {
        match self {
            Context::Catalogue => "catalogue",
            Context::Inventory => "inventory",
            Context::Pricing => "pricing",
            Context::Platform => "platform",
        }
    }

    /// Topic that carries the events of this context.
    pub const fn events_topic(self) -> &'static str {
        match self {
            Context::Catalogue => "catalogue.events",
            Context::Inventory => "inventory.events",
            Context::Pricing => "pricing.events",
            Context::Platform => "platform.events",
        }
    }

    /// Topic that services publish commands onto.
    pub const fn commands_topic(self) -> &'static str {
        match self {
            Context::Catalogue => "catalogue.commands",
            Context::Inventory => "inventory.commands",
            Context::Pricing => "pricing.commands",
            Context::Platform => "platform.commands",
        }
    }

    /// Topic on which events that a projection could not fold are shown to outside monitoring.
    pub const fn dead_letters_topic(self) -> &'static str {
        match self {
            Context::Catalogue => "catalogue.dead-letters",
            Context::Inventory => "inventory.dead-letters",
            Context::Pricing => "pricing.dead-letters",
            Context::Platform => "platform.dead-letters",
        }
    }

    /// Topic that says what became of the commands of the command topic.
    pub const fn outcomes_topic(self) -> &'static str {
        match self {
            Context::Catalogue => "catalogue.command-outcomes",
            Context::Inventory => "inventory.command-outcomes",
            Context::Pricing => "pricing.command-outcomes",
            Context::Platform => "platform.command-outcomes",
        }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Context {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Context::ALL
            .into_iter()
            .find(|context| context.as_str() == text)
            .ok_or_else(|| format!("unknown context {text:?}: use catalogue, inventory, pricing or platform"))
    }
}
