//! The roles, alone or together: each is wired here from the same parts, so that `up` and the separate processes
//! run the same code.

mod connections;
pub mod feeding;
pub mod parts;
pub mod process;
pub mod project;
pub mod relay;
pub mod replays;
pub mod serve;
pub mod up;
pub mod write;

pub use parts::{EVERY_API, openapi_document};
pub use process::{Process, bind, now};
