//! What people see of a run: while it goes on (`progress`) and at its end (`summary`, also in a `file`).

mod file;
mod progress;
mod summary;

use std::fmt::Display;
use std::io::{self, Write};

pub(crate) use self::file::SummaryFile;
pub(crate) use self::progress::Live;
pub(crate) use self::summary::{Circumstances, Summary};

/// Says something to whoever looks on. That nobody does is no reason to end.
pub(crate) fn say(what: impl Display) {
    let _ = writeln!(io::stderr(), "{what}");
}
