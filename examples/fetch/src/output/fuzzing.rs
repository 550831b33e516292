//! What the fuzz target of records calls: bytes in the place of what an earlier run has written. It checks what holds
//! for whatever `--resume` takes up: whole lines are left, and they come to the same once more.

use std::fs::{self, File};
use std::path::Path;

use super::resume::take_up;
use crate::settings::{Names, OutputSettings};

/// Few, so that they can be looked at one by one.
const MOST_ROWS: u64 = 1_000;

/// The file of records of an earlier run.
///
/// # Panics
/// Also where no file can be written: nothing would be checked.
pub fn records(data: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = settings(directory.path());
    let path = directory.path().join("records");
    for ordered in [false, true] {
        settings.ordered = ordered;
        fs::write(&path, data).expect("there is room");
        let again = || {
            let file = File::options().read(true).append(true).open(&path).expect("it is there");
            let earlier = take_up(&settings, &file, &path, None, MOST_ROWS).ok()?;
            let rows: Vec<u64> = (0..=MOST_ROWS + 1).filter(|&row| earlier.done.contains(row)).collect();
            Some((rows, fs::read(&path).expect("it is there")))
        };
        let Some((rows, text)) = again() else { continue };
        assert!(text.is_empty() || text.ends_with(b"\n"));
        assert_eq!(rows.len(), text.iter().filter(|&&byte| byte == b'\n').count());
        assert_eq!(again(), Some((rows, text)));
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

#[cfg(test)]
mod tests {
    use super::super::testing::record;

    #[test]
    fn what_is_taken_up_is_taken_up_again() {
        let line = |row| serde_json::to_string(&record(row)).unwrap() + "\n";
        for text in [String::new(), "\n".into(), line(1) + &line(3) + &line(3), line(2) + "\0\n" + &line(1_000) + "{"] {
            super::records(text.as_bytes());
        }
        super::records(line(1_001).as_bytes());
    }
}
