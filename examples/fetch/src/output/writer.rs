//! Where records go: standard output or a file, as they come or in the order of the input.
//!
//! Lines are collected and written together, whole ones only: at the end of a run, however it comes, the last line has
//! its end, except after SIGKILL or a power failure (see [`resume`]). If the disk is full, a line that is there in part
//! is taken back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};

use super::record::Record;
use super::resume::{self, Done, MOST_ROWS};
use super::warc::Archive;
use crate::settings::OutputSettings;

/// How much is collected before it is written.
const BUFFER: usize = 64 * 1024;

/// Room for the record that fills it, if that has no body: growing for it, the buffer would become twice as large.
const MARGIN: usize = 2 * 1024;

/// How far ahead of the first row that isn't done others may be, in rows and in bytes of their records.
const ROWS_AHEAD: u64 = 4096;
const BYTES_AHEAD: usize = 8 * 1024 * 1024;

/// Writes records, and knows those of an earlier run.
#[derive(Debug)]
pub(crate) struct Writer {
    to: To,
    /// Whole lines that aren't written yet.
    lines: Vec<u8>,
    order: Option<Order>,
    done: Arc<Done>,
    archive: Option<Archive>,
    /// Something could not be written. What comes later would leave a gap.
    is_broken: bool,
    /// The file as it was before it was written anew: keeps others that wait for its lock away.
    _replaced: Option<File>,
}

#[derive(Debug)]
enum To {
    Stdout(io::Stdout),
    File { file: File, path: PathBuf, len: u64 },
}

/// Records that came too early.
#[derive(Debug)]
struct Order {
    /// The row that has to come next.
    next: u64,
    waiting: BTreeMap<u64, Box<Record>>,
    /// How much memory those take, about.
    weight: usize,
}

impl Writer {
    /// Opens what is to be written, and with `--resume` reads what is there.
    pub(crate) fn open(settings: &OutputSettings) -> anyhow::Result<Self> {
        if settings.ordered && settings.retry_failed {
            bail!("--retry-failed puts its records behind the others, which is not in order: leave --ordered out");
        }
        let mut writer = Writer {
            to: To::Stdout(io::stdout()),
            lines: Vec::with_capacity(BUFFER + MARGIN),
            order: settings.ordered.then(|| Order { next: 1, waiting: BTreeMap::new(), weight: 0 }),
            done: Arc::default(),
            archive: None,
            is_broken: false,
            _replaced: None,
        };
        let Some(path) = &settings.records else {
            if settings.resume {
                bail!("--resume goes on with the file of records of an earlier run: name it with --records FILE");
            }
            writer.archive = settings.warc.as_deref().map(new_archive).transpose()?;
            return Ok(writer);
        };
        let is_new = !path.exists();
        // Not for reading unless it has to be: one end of a pipe is enough.
        let mut options = File::options();
        let file = options.read(settings.resume).append(true).create(true).open(path);
        let mut file = file.with_context(|| format!("{} can't be opened (--records)", path.display()))?;
        resume::lock(&file, path, "--records")?;
        let mut len = file.metadata()?.len();
        if !settings.resume {
            if len > 0 {
                bail!(
                    "{} has records already: --resume goes on with them, and without the file all begins anew",
                    path.display()
                );
            }
            writer.archive = settings.warc.as_deref().map(new_archive).transpose()?;
        } else {
            let mut archive = match settings.warc.as_deref() {
                Some(path) if is_new => Some(new_archive(path)?),
                Some(path) => Some(Archive::open(path)?),
                None => None,
            };
            let earlier = resume::take_up(settings, &file, path, archive.as_ref(), MOST_ROWS)?;
            if let Some(archive) = &mut archive {
                archive.start_at(earlier.archive_end)?;
            }
            writer.archive = archive;
            writer.done = Arc::new(earlier.done);
            len = earlier.len;
            if let Some(renewed) = earlier.renewed {
                writer._replaced = Some(std::mem::replace(&mut file, renewed));
            }
        }
        if let Some(order) = &mut writer.order {
            order.skip(&writer.done);
        }
        writer.to = To::File { file, path: path.clone(), len };
        Ok(writer)
    }

    /// The rows that an earlier run has done (`--resume`).
    pub(crate) fn done(&self) -> Arc<Done> {
        Arc::clone(&self.done)
    }

    /// The highest row that may be started, so that no more records than fit into memory wait for their turn.
    pub(crate) fn horizon(&self) -> u64 {
        match &self.order {
            None => u64::MAX,
            Some(order) if order.weight > BYTES_AHEAD => order.next,
            Some(order) => order.next.saturating_add(ROWS_AHEAD - 1),
        }
    }

    /// Takes the record of a row.
    ///
    /// # Errors
    /// Nobody reads standard output any more (`BrokenPipe`), the disk is full, and the like. Nothing is written after
    /// that.
    pub(crate) fn write(&mut self, record: Box<Record>) -> io::Result<()> {
        let Some(order) = &mut self.order else { return self.put(record) };
        order.add(record);
        while let Some(record) = self.order.as_mut().and_then(|order| order.take(&self.done)) {
            self.put(record)?;
        }
        Ok(())
    }

    /// Whether something is collected.
    pub(crate) fn is_behind(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Writes what is collected.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let result = loop {
            let rest = &self.lines[written..];
            if rest.is_empty() {
                break Ok(());
            }
            match self.to.write(rest) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let whole = match &result {
            Ok(()) => written,
            Err(_) => self.lines[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1),
        };
        self.lines.clear();
        self.to.wrote(written, whole);
        self.is_broken |= result.is_err();
        result.map_err(|error| self.to.failed(&error))
    }

    /// Writes what is left, in order, even if rows are missing in between because the run was ended before its time.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.put_all()
    }

    fn put_all(&mut self) -> io::Result<()> {
        if self.is_broken {
            return Ok(());
        }
        for record in self.order.take().into_iter().flat_map(|order| order.waiting.into_values()) {
            self.put(record)?;
        }
        self.flush()
    }

    fn put(&mut self, mut record: Box<Record>) -> io::Result<()> {
        if self.is_broken {
            return Err(io::Error::other("the records can't be written any more"));
        }
        if let (Some(place), Some(archive)) = (&record.warc, &mut self.archive) {
            let place = archive.append(place).map_err(|error| self.to.hinting(error));
            self.is_broken |= place.is_err();
            record.warc = Some(place?);
        }
        let start = self.lines.len();
        if let Some(json) = &record.encoded {
            self.lines.extend_from_slice(json);
        } else if let Err(error) = serde_json::to_writer(&mut self.lines, &record) {
            self.lines.truncate(start);
            return Err(error.into());
        }
        self.lines.push(b'\n');
        if self.lines.len() >= BUFFER { self.flush() } else { Ok(()) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After `finish` there is nothing left. Without it the run has failed, and what went before is worth keeping.
        let _ = self.put_all();
    }
}

impl To {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match self {
            To::Stdout(stdout) => stdout.lock().write(lines),
            To::File { file, .. } => file.write(lines),
        }
    }

    /// After `written` bytes, of which only the first `whole` are whole lines.
    fn wrote(&mut self, written: usize, whole: usize) {
        if let To::File { file, len, .. } = self {
            *len += whole as u64;
            if whole < written {
                // If this fails as well, `--resume` does it.
                let _ = file.set_len(*len);
            }
        }
    }

    fn failed(&self, error: &io::Error) -> io::Error {
        let message = match self {
            To::Stdout(_) => format!("the records can't be written to standard output: {error}"),
            To::File { path, .. } => format!("the records can't be written to {} (--records): {error}", path.display()),
        };
        self.hinting(io::Error::new(error.kind(), message))
    }

    /// With what can be done about it.
    fn hinting(&self, error: io::Error) -> io::Error {
        match self {
            To::Stdout(_) => error,
            To::File { .. } => {
                io::Error::new(error.kind(), format!("{error}; once that is mended, --resume goes on from here"))
            }
        }
    }
}

impl Order {
    fn add(&mut self, record: Box<Record>) {
        // A row that was written before has its record.
        if record.row >= self.next {
            self.weight += weight(&record);
            self.waiting.insert(record.row, record);
        }
    }

    /// The record of the row that has to come next.
    fn take(&mut self, done: &Done) -> Option<Box<Record>> {
        let record = self.waiting.remove(&self.next)?;
        self.weight = self.weight.saturating_sub(weight(&record));
        self.next += 1;
        self.skip(done);
        Some(record)
    }

    /// Goes on to the first row that an earlier run has not done.
    fn skip(&mut self, done: &Done) {
        while done.contains(self.next) {
            self.next += 1;
        }
    }
}

/// How much memory a record takes, about.
fn weight(record: &Record) -> usize {
    let texts = [&record.final_url, &record.body, &record.file, &record.etag, &record.content_type];
    let texts: usize = texts.into_iter().flatten().map(String::len).sum();
    let extracted: usize = record.extracted.iter().flatten().map(|text| text.len() + size_of::<String>()).sum();
    let response = record.warc.as_ref().map_or(0, |place| place.weight());
    let encoded = record.encoded.as_ref().map_or(0, Vec::capacity);
    let message = record.error.as_ref().map_or(0, |error| error.message.len());
    size_of::<Record>() + record.id.len() + record.url.len() + message + texts + extracted + response + encoded
}

/// One that nothing is in yet.
fn new_archive(path: &Path) -> anyhow::Result<Archive> {
    let mut archive = Archive::open(path)?;
    if archive.len() > 0 {
        bail!(
            "{} is a web archive already: give --warc another file, or --resume and --records of the run that wrote it",
            path.display()
        );
    }
    archive.start_at(0)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::output::testing::{record, settings};

    fn rows(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str::<Record>(line).unwrap().row).collect()
    }

    #[test]
    fn in_order_with_a_bounded_distance() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        settings.ordered = true;
        let path = settings.records.clone().unwrap();
        let mut writer = Writer::open(&settings).unwrap();
        assert_eq!(writer.horizon(), ROWS_AHEAD);
        for row in [3, 2, 5] {
            writer.write(record(row)).unwrap();
        }
        writer.flush().unwrap();
        assert_eq!(rows(&path), [0; 0]);
        writer.write(record(1)).unwrap();
        writer.flush().unwrap();
        assert_eq!(rows(&path), [1, 2, 3]);
        assert_eq!(writer.horizon(), 3 + ROWS_AHEAD);
        // Much that waits makes the others wait.
        writer.write(Box::new(Record { body: Some("x".repeat(BYTES_AHEAD)), ..*record(6) })).unwrap();
        assert_eq!(writer.horizon(), 4);
        writer.write(record(4)).unwrap();
        assert_eq!(writer.horizon(), 6 + ROWS_AHEAD);
        // The run ends before its time.
        writer.write(record(9)).unwrap();
        writer.finish().unwrap();
        assert_eq!(rows(&path), [1, 2, 3, 4, 5, 6, 9]);
    }

    #[test]
    fn order_goes_on_behind_what_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        settings.ordered = true;
        let path = settings.records.clone().unwrap();
        let mut writer = Writer::open(&settings).unwrap();
        [1, 2, 4, 5].into_iter().for_each(|row| writer.write(record(row)).unwrap());
        writer.finish().unwrap();
        settings.resume = true;
        let mut writer = Writer::open(&settings).unwrap();
        assert_eq!(
            [1, 2, 3, 4].map(|row| writer.done.check(row, &record(row).url).unwrap().is_some()),
            [true, true, false, false]
        );
        [5, 4, 3].into_iter().for_each(|row| writer.write(record(row)).unwrap());
        drop(writer);
        assert_eq!(rows(&path), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_full_disk_is_told_once_and_leaves_no_torn_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        settings.records = Some("/dev/full".into());
        let mut writer = Writer::open(&settings).unwrap();
        writer.write(record(1)).unwrap();
        let error = writer.flush().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("--records"), "{error}");
        assert!(writer.write(record(2)).is_err());
        writer.finish().unwrap();

        let path = directory.path().join("part");
        let file = File::options().append(true).create(true).open(&path).unwrap();
        let mut to = To::File { file, path: path.clone(), len: 0 };
        assert_eq!(to.write(b"one\ntwo\nthr").unwrap(), 11);
        to.wrote(11, 8);
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn what_is_there_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        settings.warc = Some(directory.path().join("a.warc.gz"));
        let mut writer = Writer::open(&settings).unwrap();
        let error = |settings: &OutputSettings| Writer::open(settings).unwrap_err().to_string();
        assert!(error(&settings).contains("another run"), "it is in use");
        writer.write(record(1)).unwrap();
        writer.finish().unwrap();
        assert!(error(&settings).contains("--resume"), "there are records");
        settings.records = Some(directory.path().join("others"));
        assert!(error(&settings).contains("web archive already"), "there are responses");
        settings.records = None;
        settings.resume = true;
        assert!(error(&settings).contains("--records"));
    }
}
