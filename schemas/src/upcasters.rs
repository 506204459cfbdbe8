//! Old event versions, and how each becomes the newest.
//!
//! A stored event is never rewritten; it is read in the shape it was written in and lifted here. Every
//! consumer of ours sees only the newest shape, so a fold never knows about versions.

mod product_registered;

pub(crate) use product_registered::ProductRegisteredV1;
