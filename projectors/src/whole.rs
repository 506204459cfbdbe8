//! Whether a partition has all that was published to it, where there is an event table to say so: it is not live
//! before. An empty read model beside a topic that lost its records would answer that there is nothing.

use std::sync::Arc;
use std::time::Duration;

use event_log::{EventLogError, EventTable, TopicPartition};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// What a partition must have before it is live.
pub(crate) struct MayLack {
    /// The last sequence that was published, once that was told.
    published: Option<u64>,
    /// When the event table was last heard; `None` while it never answered.
    heard_at: Option<Instant>,
    /// Looks that got no answer.
    unanswered: u32,
    /// Goes on while the partition is worked on: a question that takes long is not asked anew each time.
    asking: Option<AbortOnDropHandle<Result<Option<u64>, EventLogError>>>,
}

/// How long one look waits for the first answer.
const TOLD_WITHIN: Duration = Duration::from_millis(500);
/// After so many looks, which are a second apart or more, a partition whose event table never answered goes on as one
/// that has none. Time alone would not do: a batch may take longer than an outage.
const UNANSWERED: u32 = 10;
/// How often an end that is not reached is asked for again: the table may have been restored to less.
const ASKED_AGAIN: Duration = Duration::from_secs(10);

// === impl MayLack ===

impl MayLack {
    pub(crate) fn new() -> Self {
        Self { published: None, heard_at: None, unanswered: 0, asking: None }
    }

    /// Whether a partition that has come to `sequence` lacks nothing.
    pub(crate) async fn is_settled(&mut self, sequence: u64, table: &Arc<dyn EventTable>, at: &TopicPartition) -> bool {
        if self.published.is_none() || self.heard_at.is_none_or(|heard_at| heard_at.elapsed() >= ASKED_AGAIN) {
            self.ask(table, at).await;
        }
        self.published.is_some_and(|published| sequence >= published)
    }

    async fn ask(&mut self, table: &Arc<dyn EventTable>, at: &TopicPartition) {
        let asking = self.asking.get_or_insert_with(|| {
            let (table, at) = (Arc::clone(table), at.clone());
            AbortOnDropHandle::new(tokio::spawn(async move { table.published(&at).await }))
        });
        // Where there is an end to come to already, nothing waits for a better one.
        let within = if self.published.is_none() { TOLD_WITHIN } else { Duration::ZERO };
        let answer = tokio::time::timeout(within, asking).await;
        if answer.is_ok() {
            self.asking = None;
        }
        match answer {
            Ok(Ok(Ok(published))) => {
                self.heard_at = Some(Instant::now());
                // What is published from then on is lag, as it is for those that are live.
                self.published = match (self.published, published) {
                    (Some(known), Some(published)) => Some(known.min(published)),
                    (known, published) => known.or(published),
                };
            }
            // One that answered once and is away now has said that there is more to come.
            _ if self.heard_at.is_none() => {
                self.unanswered += 1;
                if self.unanswered >= UNANSWERED {
                    self.published = Some(0);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use std::collections::VecDeque;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use event_log::{TablePlace, TableWalk};

    use super::*;

    /// Gives its answers in order, the last one again and again.
    #[derive(Debug)]
    struct Answers(Mutex<VecDeque<Answer>>);

    #[derive(Debug, Clone, Copy)]
    enum Answer {
        Published(u64),
        FilledAgain,
        Away,
        /// Away, which shows after five seconds.
        AwayLate,
        Never,
    }

    #[async_trait]
    impl EventTable for Answers {
        fn walk(&self, at: TopicPartition, _after: TablePlace) -> Box<dyn TableWalk> {
            panic!("nobody walks over {at}");
        }

        async fn published(&self, at: &TopicPartition) -> Result<Option<u64>, EventLogError> {
            let answer = {
                let mut left = self.0.lock().unwrap();
                if left.len() > 1 { left.pop_front() } else { left.front().copied() }
            };
            match answer.unwrap() {
                Answer::Published(sequence) => Ok(Some(sequence)),
                Answer::FilledAgain => Ok(None),
                away @ (Answer::Away | Answer::AwayLate) => {
                    if matches!(away, Answer::AwayLate) {
                        tokio::time::sleep(Duration::from_secs(5)).await;
                    }
                    Err(EventLogError::Unavailable { address: at.to_string(), problem: "it is away".to_owned() })
                }
                Answer::Never => std::future::pending().await,
            }
        }
    }

    /// Whether a partition at 5 is settled at each look, a second apart, after these answers.
    async fn looks(answers: &[Answer], times: usize) -> Vec<bool> {
        looks_every(Duration::from_secs(1), answers, times).await
    }

    async fn looks_every(pause: Duration, answers: &[Answer], times: usize) -> Vec<bool> {
        let table: Arc<dyn EventTable> = Arc::new(Answers(Mutex::new(answers.iter().copied().collect())));
        let at = TopicPartition::new("inventory.events", 0);
        let mut lack = MayLack::new();
        let mut looks = Vec::new();
        for _ in 0..times {
            looks.push(lack.is_settled(5, &table, &at).await);
            tokio::time::advance(pause).await;
        }
        looks
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_waits_for_what_was_published_when_that_was_first_told() {
        use Answer::{Away, Published};
        assert_eq!(looks(&[Published(5), Published(9)], 1).await, [true]);
        assert_eq!(looks(&[Away, Away, Published(4)], 4).await, [false, false, true, true]);
        assert!(!looks(&[Published(6)], 60).await.contains(&true));
        // Restored to less.
        assert!(looks(&[Published(6), Published(3)], 12).await.contains(&true));
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_table_never_answers_goes_on_after_a_while() {
        for answer in [Answer::Away, Answer::Never] {
            let looks = looks(&[answer], 15).await;
            assert!(!looks[..6].contains(&true) && looks[14], "{answer:?}: {looks:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_looked_at_seldom_does_not_go_on_for_an_error_of_then() {
        use Answer::{Away, AwayLate, Published};
        for away in [Away, AwayLate] {
            let looks = looks_every(Duration::from_secs(30), &[away, Published(9)], 20).await;
            assert!(!looks.contains(&true), "{away:?}: {looks:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn topics_that_are_filled_again_are_waited_for_also_when_the_table_is_away_meanwhile() {
        use Answer::{Away, FilledAgain, Never, Published};
        for away in [Away, Never] {
            let mut answers = vec![FilledAgain; 20];
            answers.push(away);
            assert!(!looks(&answers, 60).await.contains(&true), "{away:?}");
        }
        let answers = [FilledAgain, FilledAgain, Away, Published(5)];
        assert_eq!(looks(&answers, 4).await, [false, false, false, true]);
    }
}
