//! What a librdkafka client says on its own: log lines go to `tracing`, the last problem is kept for error messages.

use std::sync::{Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::error::EventLogError;

/// Hears one client.
#[derive(Debug)]
pub(super) struct ClientLog {
    /// For messages: without options, so without secrets.
    address: String,
    last_problem: Mutex<Option<String>>,
}

// === impl ClientLog ===

impl ClientLog {
    pub fn new(address: String) -> Self {
        Self { address, last_problem: Mutex::default() }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the client complained about last, such as a refused connection. It is more telling than the error code
    /// that a call ends with, which is mostly that it took too long.
    pub fn last_problem(&self) -> Option<String> {
        self.last_problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn unavailable(&self, problem: impl ToString) -> EventLogError {
        let problem = match self.last_problem() {
            Some(last) => format!("{} ({last})", problem.to_string()),
            None => problem.to_string(),
        };
        EventLogError::Unavailable { address: self.address.clone(), problem }
    }

    pub fn permanent(&self, problem: impl ToString) -> EventLogError {
        EventLogError::Permanent { problem: format!("{}: {}", self.address, problem.to_string()) }
    }

    /// Whether trying again may help is decided here. `about` names the topic or group that the call was about. An
    /// unknown partition may pass: a broker has not heard of all of a topic yet that was just made.
    pub fn classify(&self, error: &KafkaError, about: &str) -> EventLogError {
        use RDKafkaErrorCode as Code;
        match code_of(error) {
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
                EventLogError::UnknownTopic { topic: about.to_owned() }
            }
            Some(
                Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
                | Code::UnsupportedVersion
                | Code::UnsupportedSASLMechanism
                | Code::UnsupportedCompressionType
                | Code::UnsupportedForMessageFormat
                | Code::MessageSizeTooLarge
                | Code::InvalidMessageSize
                | Code::MessageBatchTooLarge
                | Code::InvalidRecord
                | Code::InvalidTimestamp
                | Code::InvalidTopic
                | Code::InvalidPartitions
                | Code::InvalidReplicationFactor
                | Code::InvalidConfig
                | Code::InvalidGroupId
                | Code::InvalidSessionTimeout
                | Code::InconsistentGroupProtocol
                | Code::InvalidArgument
                | Code::PolicyViolation
                | Code::FencedInstanceId,
            ) => self.permanent(format!("{about}: {error}")),
            _ => self.unavailable(format!("{about}: {error}")),
        }
    }
}

impl ClientContext for ClientLog {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(target: "librdkafka", facility, line, "librdkafka log line");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "librdkafka error");
        // "All brokers are down" follows from the refused connections before it, and says less.
        if code_of(&error) == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        *self.last_problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

/// A client that asks questions and reads nothing.
impl ConsumerContext for ClientLog {}

/// The code of any error that has one.
pub(super) fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broker_has_not_heard_of_yet_may_pass_and_what_it_refuses_does_not() {
        let log = ClientLog::new("kafka://localhost:9092".to_owned());
        let told = |code| log.classify(&KafkaError::MetadataFetch(code), "inventory.events");
        assert!(told(RDKafkaErrorCode::UnknownPartition).is_transient());
        assert!(told(RDKafkaErrorCode::LeaderNotAvailable).is_transient());
        assert!(!told(RDKafkaErrorCode::TopicAuthorizationFailed).is_transient());
        assert!(matches!(told(RDKafkaErrorCode::UnknownTopic), EventLogError::UnknownTopic { .. }));
    }
}
