//! What the fuzz target of records calls: bytes in the place of what an earlier run has written. It checks what holds
//! for whatever `--resume` takes up: whole lines are left, and they come to the same once more.

use std::fs;
use std::path::Path;

use super::Writer;
use super::resume::MOST_ROWS;
use crate::settings::{Names, OutputSettings};

/// The file of records of an earlier run.
pub fn records(data: &[u8]) {
    let Ok(directory) = tempfile::tempdir() else { return };
    let mut settings = settings(directory.path());
    settings.resume = true;
    let path = directory.path().join("records");
    for ordered in [false, true] {
        settings.ordered = ordered;
        let written = fs::write(&path, data);
        let take_up = || {
            let done = Writer::open(&settings).ok()?.done();
            let rows: Vec<u64> = (0..=MOST_ROWS).filter(|&row| done.contains(row)).collect();
            Some((rows, fs::read(&path).ok()?))
        };
        let (Ok(()), Some((rows, text))) = (written, take_up()) else { continue };
        assert!(text.is_empty() || text.ends_with(b"\n"));
        assert_eq!(rows.len(), text.iter().filter(|&&byte| byte == b'\n').count());
        assert_eq!(take_up(), Some((rows, text)));
    }
}

/// Records in a directory, and nothing else.
pub(super) fn settings(directory: &Path) -> OutputSettings {
    OutputSettings {
        records: Some(directory.join("records")),
        resume: false,
        retry_failed: false,
        ordered: false,
        directory: None,
        names: Names::Path,
        inline: None,
        warc: None,
        keep_errors: false,
    }
}
