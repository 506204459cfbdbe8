//! The search read model: the contract of its rows, what it answers, and how its index comes back.

mod search_suite;
