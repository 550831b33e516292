//! The records of an earlier run, which are its journal: `--resume`.
//!
//! The file is read once, line by line. What stays in memory is one byte for each row: 0, or whether it failed and a
//! hash of the URL of its record, which tells whether the input is still the same. A record counts if what it names is
//! there:
//!
//! - a line without an end was being written when the run was killed, and is cut off;
//! - a body that is missing or has another length was lost, as happens when the power fails, and so was a response that
//!   the archive is too short for. Those of the last minute before the end are read as well, because until it is
//!   written back a file may have its length and not its content.
//!
//! Rows whose records don't count are done again. If such records are not at the end, the file is written anew beside
//! itself and renamed.

use std::borrow::Cow;
use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tempfile::NamedTempFile;

use super::hash::Sha256;
use super::partial;
use super::warc::{Archive, Place};
use crate::settings::OutputSettings;

/// How long a system may keep what is written in memory. (Linux: 30 seconds, and 5 more until it is looked after.)
const WRITTEN_BACK: Duration = Duration::from_secs(60);

/// More rows than anybody has; without a limit, a wrong number would take all memory.
pub(super) const MOST_ROWS: u64 = 1 << 32;

/// The rows that an earlier run has done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// For each row from 1, a hash of its URL, never 0, and whether it failed; or 0.
    rows: Vec<u8>,
    path: PathBuf,
}

/// The bit of a row that failed.
const FAILED: u8 = 0x80;

/// How a row was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Succeeded,
    Failed,
}

/// What is left of an earlier run.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) done: Done,
    /// Of the file, which ends with a whole line.
    pub(super) len: u64,
    /// The file, if it had to be written anew.
    pub(super) renewed: Option<File>,
    /// Where the last response ends in the archive.
    pub(super) archive_end: u64,
}

/// Of a record, what is needed here.
#[derive(Deserialize)]
struct Seen<'a> {
    row: u64,
    #[serde(borrow)]
    url: Cow<'a, str>,
    #[serde(default)]
    error: Option<IgnoredAny>,
    bytes: u64,
    #[serde(default)]
    sha256: Option<&'a str>,
    #[serde(default, borrow)]
    file: Option<Cow<'a, str>>,
    #[serde(default)]
    warc: Option<Place>,
    started_at: &'a str,
    seconds: f64,
}

impl Done {
    /// Whether there is nothing of the kind.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn contains(&self, row: u64) -> bool {
        self.mark(row) != 0
    }

    /// How a row was done, if it is. `url` is as in records: redacted.
    ///
    /// # Errors
    /// The input is not that of the earlier run.
    pub(crate) fn check(&self, row: u64, url: &str) -> anyhow::Result<Option<Before>> {
        match self.mark(row) {
            0 => Ok(None),
            mark if mark & !FAILED == hash(url) => {
                Ok(Some(if mark & FAILED == 0 { Before::Succeeded } else { Before::Failed }))
            }
            _ => bail!(
                "row {row} is now {url}, and the run that wrote {} had another one there: give --resume the same \
                 input, or another file to --records to begin anew",
                self.path.display()
            ),
        }
    }

    fn mark(&self, row: u64) -> u8 {
        let index = row.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.rows.get(index)).copied().unwrap_or(0)
    }

    fn add(&mut self, row: u64, url: &str, failed: bool) {
        let index = usize::try_from(row - 1).unwrap_or(usize::MAX); // it is at most `most_rows`
        if index >= self.rows.len() {
            self.rows.resize(index + 1, 0);
        }
        self.rows[index] = hash(url) | if failed { FAILED } else { 0 };
    }
}

/// Only ever compared with others of this run.
fn hash(url: &str) -> u8 {
    let mut hasher = DefaultHasher::new();
    url.hash(&mut hasher);
    u8::try_from(hasher.finish() % u64::from(FAILED - 1)).unwrap_or(0) + 1
}

/// Makes sure that no other run writes to a file.
pub(super) fn lock(file: &File, path: &Path, flag: &str) -> anyhow::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            bail!("another run is writing {}: wait for it, or give {flag} another file", path.display())
        }
        // Where there are no locks, one does without.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Reads the records in `file`, which is at `path` and locked, and leaves out those that don't count. No row may have a
/// number above `most_rows`.
pub(super) fn take_up(
    settings: &OutputSettings,
    file: &File,
    path: &Path,
    archive: Option<&Archive>,
    most_rows: u64,
) -> anyhow::Result<Earlier> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("--resume needs a regular file of records, and {} isn't one", path.display());
    }
    let recent = metadata.modified().ok().and_then(|time| time.checked_sub(WRITTEN_BACK));
    let check = Check { directory: settings.directory.as_deref(), archive, recent };
    let mut kept = Kept { path, renewed: None, end: 0, len: 0 };
    let mut done = Done { rows: Vec::new(), path: path.to_owned() };
    let (mut archive_end, mut archived) = (0, 0_u64);
    // The rows that were read and kept before.
    let (mut last, mut previous) = (0, 0);

    let mut reader = BufReader::with_capacity(256 * 1024, file);
    reader.rewind()?;
    let (mut line, mut number) = (Vec::new(), 0_u64);
    loop {
        line.clear();
        number += 1;
        let start = kept.end;
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        kept.end += line.len() as u64;
        let is_whole = line.ends_with(b"\n");
        // A torn line is one that begins like a record; and a file system may leave zeros where it lost something.
        let is_torn = !is_whole && b"{\"id\":".starts_with(&line[..line.len().min(6)]);
        let is_remains = is_torn || line.contains(&0);
        let seen: Seen<'_> = match serde_json::from_slice(&line) {
            Ok(seen) if is_whole => seen,
            _ if is_remains => continue,
            Ok(_) => continue,
            Err(error) => {
                let place = path.display();
                bail!(
                    "line {number} of {place} is not a record ({error}): give --records the file of the run to --resume"
                )
            }
        };
        if seen.row == 0 || seen.row > most_rows {
            bail!("line {number} of {} has a row number that no run has given: {}", path.display(), seen.row);
        }
        if settings.ordered {
            if seen.row <= last {
                bail!(
                    "{} is not in the order of the input (line {number}): it was written without --ordered, so leave \
                     that out as well to --resume it",
                    path.display()
                );
            }
            last = seen.row;
            // After a gap nothing counts: what belongs into it could only be put behind.
            if seen.row != previous + 1 {
                continue;
            }
        }
        archived += u64::from(seen.warc.is_some());
        let is_wanted = !(settings.retry_failed && seen.error.is_some());
        if done.contains(seen.row) || !is_wanted || !check.is_intact(&seen) {
            continue;
        }
        previous = seen.row;
        done.add(seen.row, &seen.url, seen.error.is_some());
        if let Some((offset, length)) = seen.warc.as_ref().and_then(Place::at) {
            archive_end = archive_end.max(offset + length);
        }
        kept.keep(&mut reader, start, &line)?;
    }
    if let Some(archive) = archive
        && archive.len() > 0
        && archived == 0
        && !done.rows.is_empty()
    {
        bail!(
            "no record in {} has its response in the file of --warc: give that of the run to --resume",
            path.display()
        );
    }
    let Kept { renewed, len, .. } = kept;
    let renewed = match renewed {
        Some(renewed) => Some(replace(renewed, path).with_context(|| format!("{} can't be replaced", path.display()))?),
        None => {
            if len < metadata.len() {
                file.set_len(len)?;
            }
            None
        }
    };
    Ok(Earlier { done, len, renewed, archive_end })
}

/// The lines that stay.
struct Kept<'a> {
    path: &'a Path,
    /// Another file for them, from when one in the middle was left out.
    renewed: Option<BufWriter<NamedTempFile>>,
    /// How much was read.
    end: u64,
    /// How much stays.
    len: u64,
}

impl Kept<'_> {
    fn keep(&mut self, reader: &mut BufReader<&File>, start: u64, line: &[u8]) -> anyhow::Result<()> {
        if self.renewed.is_none() && start > self.len {
            let name = |error| anyhow!("{} can't be written anew for --resume: {error}", self.path.display());
            let directory = self.path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
            let mut renewed = BufWriter::new(NamedTempFile::new_in(directory).map_err(name)?);
            // The place in the file is shared with the reader, which has to find it again.
            let place = reader.stream_position()?;
            let mut file = *reader.get_ref();
            file.rewind()?;
            io::copy(&mut file.take(self.len), &mut renewed).map_err(name)?;
            reader.seek(io::SeekFrom::Start(place))?;
            self.renewed = Some(renewed);
        }
        if let Some(renewed) = &mut self.renewed {
            renewed.write_all(line)?;
        }
        self.len += line.len() as u64;
        Ok(())
    }
}

/// Puts the new file in place of the old one, safe against power failure, and locks it.
fn replace(renewed: BufWriter<NamedTempFile>, path: &Path) -> anyhow::Result<File> {
    // What a link leads to is replaced, not the link.
    let path = path.canonicalize()?;
    let renewed = renewed.into_inner()?;
    renewed.as_file().sync_all()?;
    fs::set_permissions(renewed.path(), fs::metadata(&path)?.permissions())?;
    let file = File::options().read(true).append(true).open(renewed.path())?;
    lock(&file, &path, "--records")?;
    renewed.persist(&path)?;
    Ok(file)
}

/// Whether what a record names is there.
struct Check<'a> {
    directory: Option<&'a Path>,
    archive: Option<&'a Archive>,
    /// What is older has been written back.
    recent: Option<SystemTime>,
}

impl Check<'_> {
    fn is_intact(&self, seen: &Seen<'_>) -> bool {
        let is_recent = self.is_recent(seen);
        let file = match (&seen.file, self.directory) {
            (Some(name), Some(directory)) => {
                let path = directory.join(&**name);
                let metadata = fs::metadata(&path);
                let hash_is_right = || seen.sha256.is_some_and(|hash| sha256(&path).is_ok_and(|is| is == hash));
                metadata.is_ok_and(|metadata| {
                    let is_right = metadata.len() == seen.bytes && (!is_recent || hash_is_right());
                    metadata.is_file() && is_right
                })
            }
            _ => true,
        };
        let response = match (seen.warc.as_ref().and_then(Place::at), self.archive) {
            (Some((offset, length)), Some(archive)) => {
                offset.checked_add(length).is_some_and(|end| end <= archive.len())
                    && (!is_recent || archive.is_intact(offset, length))
            }
            _ => true,
        };
        file && response
    }

    fn is_recent(&self, seen: &Seen<'_>) -> bool {
        let Some(recent) = self.recent else { return true };
        ended(seen).is_none_or(|ended| ended >= recent)
    }
}

/// When a row was done.
fn ended(seen: &Seen<'_>) -> Option<SystemTime> {
    let took = Duration::try_from_secs_f64(seen.seconds).ok()?;
    humantime::parse_rfc3339(seen.started_at).ok()?.checked_add(took)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    partial::hash(File::open(path)?, &mut hash)?;
    Ok(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Writer;
    use crate::output::record::{Failure, Kind, Record};
    use crate::output::testing::{record, settings};

    /// The records of rows 1 to `count`, each with a body, written long ago.
    fn earlier(settings: &OutputSettings, count: u64) -> Vec<String> {
        let bodies = settings.directory.as_deref().unwrap();
        fs::create_dir_all(bodies).unwrap();
        let body = |row: u64| {
            let name = row.to_string();
            fs::write(bodies.join(&name), &name).unwrap();
            let sha256 = Some(Sha256::of(&name));
            let line = Record { bytes: name.len() as u64, file: Some(name), sha256, ..*record(row) };
            serde_json::to_string(&line).unwrap() + "\n"
        };
        (1..=count).map(body).collect()
    }

    fn done(settings: &OutputSettings, count: u64) -> Vec<u64> {
        let writer = Writer::open(settings).unwrap();
        (1..=count).filter(|&row| writer.done().check(row, &record(row).url).unwrap().is_some()).collect()
    }

    fn kept(settings: &OutputSettings) -> String {
        fs::read_to_string(settings.records.as_ref().unwrap()).unwrap()
    }

    fn resumed(directory: &Path) -> (OutputSettings, PathBuf, PathBuf) {
        let mut settings = settings(directory);
        settings.resume = true;
        settings.directory = Some(directory.join("bodies"));
        let (records, bodies) = (settings.records.clone().unwrap(), settings.directory.clone().unwrap());
        (settings, records, bodies)
    }

    #[test]
    fn what_does_not_count_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let (settings, records, bodies) = resumed(directory.path());
        assert_eq!(done(&settings, 5), [0; 0], "there is no file yet");

        let lines = earlier(&settings, 5);
        let torn = &lines[4][..lines[4].len() - 1];
        fs::write(&records, lines[..4].concat() + torn).unwrap();
        assert_eq!(done(&settings, 5), [1, 2, 3, 4]);
        assert_eq!(kept(&settings), lines[..4].concat());

        fs::remove_file(bodies.join("2")).unwrap();
        fs::write(bodies.join("4"), "longer").unwrap();
        fs::write(&records, lines.concat() + &lines[0]).unwrap();
        assert_eq!(done(&settings, 5), [1, 3, 5]);
        assert_eq!(kept(&settings), [&*lines[0], &lines[2], &lines[4]].concat(), "written anew");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn the_content_of_late_bodies_counts() {
        let directory = tempfile::tempdir().unwrap();
        let (settings, records, bodies) = resumed(directory.path());
        let mut lines = earlier(&settings, 3);
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let late = Record { started_at: now, ..serde_json::from_str(&lines[2]).unwrap() };
        lines[2] = serde_json::to_string(&late).unwrap() + "\n";
        for row in ["2", "3"] {
            fs::write(bodies.join(row), [0]).unwrap(); // the length is right
        }
        fs::write(&records, lines.concat() + "\0\0\0\n").unwrap();
        assert_eq!(done(&settings, 3), [1, 2]);
        assert_eq!(kept(&settings), lines[..2].concat());
    }

    #[test]
    fn another_input_or_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (mut settings, records, _) = resumed(directory.path());
        let lines = earlier(&settings, 2);
        fs::write(&records, lines.concat()).unwrap();
        let done = Writer::open(&settings).unwrap().done();
        let error = done.check(1, "https://another.org/").unwrap_err().to_string();
        assert!(error.contains("same input"), "{error}");

        let refused = |settings: &OutputSettings, text: &str, what: &str| {
            fs::write(&records, text).unwrap();
            let error = Writer::open(settings).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert_eq!(kept(settings), text, "it is left as it is");
        };
        refused(&settings, "https://h.org/\n", "not a record");
        refused(&settings, "https://h.org/", "not a record");
        refused(&settings, &(lines[0].clone() + "{}\n"), "line 2");
        refused(&settings, &lines[0].replace("\"row\":1", "\"row\":0"), "row number");
        let archive = directory.path().join("a.warc.gz");
        fs::write(&archive, "of another run").unwrap();
        settings.warc = Some(archive.clone());
        refused(&settings, &lines.concat(), "--warc");
        assert_eq!(fs::read(&archive).unwrap(), b"of another run");
        settings.warc = None;
        settings.ordered = true;
        refused(&settings, &(lines[1].clone() + &lines[0]), "--ordered");
    }

    #[test]
    fn failed_rows_are_done_again_if_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let (mut settings, records, _) = resumed(directory.path());
        let mut lines = earlier(&settings, 3);
        let error = Some(Failure { kind: Kind::Dns, message: "no such host".into() });
        lines[1] = serde_json::to_string(&Record { error, ..*record(2) }).unwrap() + "\n";
        fs::write(&records, lines.concat()).unwrap();
        assert_eq!(done(&settings, 3), [1, 2, 3]);
        let before = [1, 2].map(|row| Writer::open(&settings).unwrap().done().check(row, &record(row).url).unwrap());
        assert_eq!(before, [Some(Before::Succeeded), Some(Before::Failed)]);
        settings.retry_failed = true;
        assert_eq!(done(&settings, 3), [1, 3]);
        settings.ordered = true;
        assert!(Writer::open(&settings).unwrap_err().to_string().contains("--ordered"));
    }
}
