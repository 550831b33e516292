//! What comes out of a run: one record for each row, and the bodies.
//!
//! [`Bodies`] keeps what responses carry, as files, in records or in a WARC file; [`Writer`] prints the records, in
//! order if that is wanted, and knows those of an earlier run. A body has its place before its record is written, so a
//! record never names what isn't there: a run that is killed in between does that row again, over the same file.

mod body;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hash;
mod names;
mod partial;
pub(crate) mod record;
mod resume;
mod warc;
mod writer;

pub(crate) use body::{Bodies, Body, Head, LONGEST_IN_MEMORY, Ticket};
pub(crate) use partial::Partial;
pub(crate) use resume::{Before, Done};
pub(crate) use warc::Place;
pub(crate) use writer::Writer;

pub(crate) use crate::extract::Page;

#[cfg(test)]
mod testing {
    pub(super) use super::fuzzing::settings;
    use super::record::Record;

    /// Of a row that was done long ago.
    pub(super) fn record(row: u64) -> Box<Record> {
        Box::new(Record {
            id: row.to_string(),
            row,
            url: format!("https://h.org/{row}"),
            method: "GET".into(),
            started_at: "2001-02-03T04:05:06Z".into(),
            ..Record::default()
        })
    }
}
