//! Records and bodies.

mod body;
mod names;
pub(crate) mod record;
mod resume;
mod warc;
mod writer;
