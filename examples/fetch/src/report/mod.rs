//! What people see of a run: while it goes on (`progress`) and at its end (`summary`).

mod progress;
mod summary;

pub(crate) use self::progress::Live;
pub(crate) use self::summary::{Circumstances, Summary};
