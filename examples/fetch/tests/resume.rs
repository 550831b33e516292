//! Runs that end before their time, and what `--resume` makes of them.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use flate2::read::{GzDecoder, MultiGzDecoder};
use serde_json::Value;
use sha2::{Digest, Sha256};
use warc::{WarcHeader, WarcReader};

use self::common::{Run, Server, Then, files, ok, program, records, respond, run_with};

/// What the server has at a path; some of it is too large for one piece.
fn content(path: &str) -> Vec<u8> {
    let number: usize = path.trim_start_matches("/file/").parse().unwrap();
    let count = if number.is_multiple_of(20) { 20_000 } else { 1 + number % 7 };
    format!("{number} has this; ").repeat(count).into_bytes()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A directory with a list of `rows` URLs, and where everything goes.
struct Place {
    directory: tempfile::TempDir,
    server: Server,
    /// One word for each answer.
    answers: Mutex<mpsc::Receiver<()>>,
    rows: usize,
}

impl Place {
    fn new(rows: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sender, answers) = mpsc::channel();
        let server = Server::start(move |asked, stream| {
            ok(stream, &content(&asked.path))?;
            let _ = sender.send(());
            Ok(Then::Keep)
        });
        let list: String = (1..=rows).map(|row| server.url(&format!("/file/{row}\n"))).collect();
        fs::write(directory.path().join("list"), list).unwrap();
        Place { directory, server, answers: Mutex::new(answers), rows }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = program();
        command.current_dir(self.directory.path());
        command.args(["--quiet", "--resume", "--records", "records", "--concurrency", "8", "--per-host", "8"]);
        command.args(more).args(["--from", "list"]);
        command
    }

    fn resume(&self, more: &[&str]) -> Run {
        run_with(&mut self.command(more), b"")
    }

    /// Starts the program and kills it after so many answers and a moment. Says whether it was killed.
    fn kill(&self, more: &[&str], answers: u32, moment: Duration) -> bool {
        let answered = self.answers.lock().unwrap();
        while answered.try_recv().is_ok() {}
        let mut child =
            self.command(more).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (watchdog, mut count) = (Instant::now() + Duration::from_secs(60), 0);
        let end = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            assert!(Instant::now() < watchdog, "it hangs");
            if count == answers {
                break None;
            }
            match answered.recv_timeout(Duration::from_millis(20)) {
                Ok(()) => count += 1,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the server lives"),
            }
        };
        let until = Instant::now() + moment;
        while Instant::now() < until {}
        let _ = child.kill();
        let status = child.wait().unwrap();
        end.is_none() && status.code().is_none()
    }

    /// The rows that have a whole record now.
    fn done(&self) -> BTreeSet<u64> {
        let text = fs::read_to_string(self.path("records")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str::<Value>(line).unwrap()["row"].as_u64().unwrap()).collect()
    }

    /// Takes some bytes from the end, as a kill in the middle of a write may leave the file.
    fn tear(&self, bytes: u64) {
        let Ok(file) = File::options().write(true).open(self.path("records")) else { return };
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(bytes)).unwrap();
    }

    /// Each row has one record, and what it names is there and right.
    fn check(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("records")).unwrap();
        assert!(text.ends_with('\n'));
        let records = records(&text);
        let rows: BTreeSet<_> = records.iter().map(|record| record["row"].as_u64().unwrap()).collect();
        assert_eq!((records.len(), rows.len()), (self.rows, self.rows));
        for record in &records {
            let expected = content(&record["url"].as_str().unwrap()[self.server.url("").len()..]);
            assert_eq!(record["status"], 200, "{record}");
            assert_eq!(record["bytes"], expected.len());
            assert_eq!(record["sha256"], sha256(&expected));
            if let Some(file) = record["file"].as_str() {
                assert!(fs::read(self.path("bodies").join(file)).unwrap() == expected, "{file}");
            }
        }
        records
    }
}

/// Some numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Kills the program `times` times at random moments, and lets it end then.
fn killed(more: &[&str], times: usize, seed: u64) -> (Place, Vec<Value>) {
    let place = Place::new(times * 16);
    let mut dice = Dice(seed);
    let mut kills = 0;
    for _ in 0..times {
        if dice.below(3) == 0 {
            place.tear(1 + dice.below(40));
        }
        let done = place.done();
        let before = place.server.asked().len();
        let answers = u32::try_from(dice.below(16)).unwrap();
        kills += usize::from(place.kill(more, answers, Duration::from_micros(dice.below(3_000))));
        // With --ordered, what comes after a gap is not there.
        for asked in &place.server.asked()[before..] {
            let row: u64 = asked.path["/file/".len()..].parse().unwrap();
            assert!(!done.contains(&row), "row {row} has its record and is asked for again");
        }
    }
    assert_eq!(kills, times, "the runs were long enough to be killed");
    let run = place.resume(more);
    assert_eq!(run.code, Some(0), "{run:?}");
    let records = place.check();
    (place, records)
}

#[test]
fn killed_with_files() {
    let (place, _) = killed(&["--output-dir", "bodies"], 20, 1);
    let files = files(&place.path("bodies"));
    assert_eq!(files.len(), place.rows, "nothing else is left: {files:?}");
    assert!(!place.path("bodies/.fetch-partial").exists());
}

#[test]
fn killed_in_order() {
    let (_, records) = killed(&["--output-dir", "bodies", "--ordered"], 15, 2);
    for (index, record) in records.iter().enumerate() {
        assert_eq!(record["row"], index + 1);
    }
}

#[test]
fn killed_with_an_archive() {
    let (place, records) = killed(&["--warc", "a.warc.gz"], 15, 3);
    let archive = MultiGzDecoder::new(File::open(place.path("a.warc.gz")).unwrap());
    let mut kinds = BTreeMap::new();
    let mut urls = BTreeSet::new();
    for record in WarcReader::new(BufReader::new(archive)).iter_raw_records() {
        let (head, _) = record.unwrap();
        let field = |name| String::from_utf8(head.as_ref()[&name].clone()).unwrap();
        let kind = field(WarcHeader::WarcType);
        if kind == "response" {
            assert!(urls.insert(field(WarcHeader::TargetURI)), "two responses of one URL");
        }
        *kinds.entry(kind).or_insert(0) += 1;
    }
    let counts = [("request", place.rows), ("response", place.rows), ("warcinfo", 1)];
    assert_eq!(kinds, counts.map(|(kind, count)| (kind.to_owned(), count)).into());
    let mut archive = File::open(place.path("a.warc.gz")).unwrap();
    for record in records {
        let [offset, length] = [0, 1].map(|index| record["warc"][index].as_u64().unwrap());
        archive.seek(SeekFrom::Start(offset)).unwrap();
        let mut text = Vec::new();
        GzDecoder::new((&archive).take(length)).read_to_end(&mut text).unwrap();
        let expected = content(&record["url"].as_str().unwrap()[place.server.url("").len()..]);
        assert!(text.ends_with(&[&expected[..], b"\r\n\r\n"].concat()));
    }
}

#[test]
fn only_what_was_lost_is_done_again() {
    let place = Place::new(30);
    assert_eq!(place.resume(&["--output-dir", "bodies"]).code, Some(0));
    let records = place.check();
    let file = |index: usize| place.path("bodies").join(records[index]["file"].as_str().unwrap());
    fs::remove_file(file(3)).unwrap();
    // As a power failure may leave it: all there is are zeros.
    let length = fs::metadata(file(10)).unwrap().len();
    fs::write(file(10), vec![0; usize::try_from(length).unwrap()]).unwrap();
    let text = fs::read_to_string(place.path("records")).unwrap();
    fs::write(place.path("records"), &text[..text.len() - 20]).unwrap();

    let before = place.server.asked().len();
    assert_eq!(place.resume(&["--output-dir", "bodies"]).code, Some(0));
    let asked: BTreeSet<_> = place.server.asked()[before..].iter().map(|asked| place.server.url(&asked.path)).collect();
    let expected = [3, 10, 29].map(|index| records[index]["url"].as_str().unwrap().to_owned());
    assert_eq!(asked, expected.into());
    place.check();

    let before = place.server.asked().len();
    assert_eq!(place.resume(&["--output-dir", "bodies"]).code, Some(0));
    assert_eq!(place.server.asked().len(), before, "all is done");
}

#[test]
fn another_list_is_refused() {
    let place = Place::new(5);
    assert_eq!(place.resume(&[]).code, Some(0));
    let list = fs::read_to_string(place.path("list")).unwrap();
    fs::write(place.path("list"), list.replacen("/file/1", "/file/11", 1)).unwrap();
    let run = place.resume(&[]);
    assert!(run.code != Some(0) && run.stderr.contains("same input"), "{run:?}");
    place.check();

    // Without --resume, nothing is overwritten.
    let run = run_with(program().args(["--records"]).arg(place.path("records")).arg(place.server.url("/file/1")), b"");
    assert!(run.code != Some(0) && run.stderr.contains("--resume"), "{run:?}");
    place.check();
}

#[test]
fn what_failed_is_done_again_if_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(|asked, stream| {
        let is_first = asked.header("x-run") == Some("1");
        let status = if is_first && asked.path == "/2" { "404 Not Found" } else { "200 OK" };
        respond(stream, status, &[], b"hello")?;
        Ok(Then::Keep)
    });
    let run = |number: &str, more: &[&str]| {
        let mut command = program();
        command.args(["--quiet", "--records"]).arg(directory.path().join("records"));
        command.args(["--header", &format!("X-Run: {number}")]).args(more);
        let run = run_with(command.args([server.url("/1"), server.url("/2"), server.url("/3")]), b"");
        let text = fs::read_to_string(directory.path().join("records")).unwrap();
        (run.code, records(&text))
    };
    assert_eq!(run("1", &[]).0, Some(1));
    let (code, records) = run("2", &["--resume"]);
    assert_eq!(code, Some(1), "a failure of the run before is one");
    assert_eq!(records.iter().filter(|record| record["status"] == 404).count(), 1);
    assert_eq!(run("2", &["--resume", "--fail-above", "34%"]).0, Some(0));
    let (code, records) = run("3", &["--resume", "--retry-failed"]);
    assert_eq!((code, records.len()), (Some(0), 3));
    assert!(records.iter().all(|record| record["status"] == 200));
    assert_eq!(server.asked().len(), 4);
}
