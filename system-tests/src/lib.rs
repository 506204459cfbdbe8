//! Tests over the whole system and over the workspace itself. Nothing but tests: `tests/` on the Rust side, `servers/`,
//! `clients/` and `asyncapi/` for what they run against and with. `run` runs everything.
