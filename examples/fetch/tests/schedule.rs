//! What is fetched when: limits for hosts and rates, second attempts, deadlines, interruptions, and how a run ends.

mod common;

use std::collections::HashSet;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{Server, Then, ok, respond};

/// How many have come in, and how many are there at once.
#[derive(Debug, Default)]
struct Door {
    state: Mutex<Inside>,
    changed: Condvar,
}

/// How long anybody waits at a door.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Inside {
    came: usize,
    now: usize,
    most: usize,
    open: bool,
}

impl Door {
    /// Comes in, and stays until so many have come or the door was opened; gives up in the end.
    fn pass(&self, until: impl Fn(usize) -> usize) {
        let mut inside = self.state.lock().unwrap();
        inside.came += 1;
        inside.now += 1;
        inside.most = inside.most.max(inside.now);
        let wanted = until(inside.came);
        self.changed.notify_all();
        let wait = |inside: &mut Inside| inside.came < wanted && !inside.open;
        let (mut inside, _) = self.changed.wait_timeout_while(inside, PATIENCE, wait).unwrap();
        inside.now -= 1;
    }

    fn wait_for(&self, came: usize) {
        let inside = self.state.lock().unwrap();
        let wait = |inside: &mut Inside| inside.came < came;
        let (inside, waited) = self.changed.wait_timeout_while(inside, PATIENCE, wait).unwrap();
        assert!(!waited.timed_out(), "only {} came", inside.came);
    }

    fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.changed.notify_all();
    }

    fn came(&self) -> usize {
        self.state.lock().unwrap().came
    }

    fn most(&self) -> usize {
        self.state.lock().unwrap().most
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_host_gets_as_many_requests_at_once_as_it_may() {
    let door = Arc::new(Door::default());
    let inside = door.clone();
    let server = Server::start(move |asked, stream| {
        // Groups of three leave together, so that a fourth would be seen.
        inside.pass(|came| came.div_ceil(3) * 3);
        ok(stream, asked.path.as_bytes())?;
        Ok(Then::Keep)
    });
    let urls = (0..9).map(|n| server.url(&format!("/{n}")));
    let run = common::run(["--per-host".into(), "3".into()].into_iter().chain(urls));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.records().len(), 9);
    assert_eq!(door.most(), 3);
}

#[test]
fn a_list_that_is_sorted_by_host_keeps_all_hosts_busy() {
    let door = Arc::new(Door::default());
    let servers: Vec<_> = (0..4)
        .map(|_| {
            let door = door.clone();
            Server::start(move |_, stream| {
                door.pass(|_| 4); // Nobody leaves before each host was asked.
                ok(stream, b"")?;
                Ok(Then::Keep)
            })
        })
        .collect();
    let urls = servers.iter().flat_map(|server| (0..50).map(|n| server.url(&format!("/{n}"))));
    let run =
        common::run(["--per-host".into(), "1".into(), "--concurrency".into(), "4".into()].into_iter().chain(urls));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.records().len(), 200);
    assert_eq!(door.most(), 4);
}

#[test]
fn a_host_that_asks_for_patience_gets_it_and_holds_nobody_up() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let started = |name: &'static str| {
        let log = log.clone();
        Server::start(move |asked, stream| {
            let mut log = log.lock().unwrap();
            let first = !log.iter().any(|&(who, _)| who == name);
            log.push((name, Instant::now()));
            if name == "patient" && first {
                respond(stream, "429 Too Many Requests", &["Retry-After: 1"], b"")?;
            } else {
                ok(stream, asked.path.as_bytes())?;
            }
            Ok(Then::Keep)
        })
    };
    let (patient, other) = (started("patient"), started("other"));
    // With one slot in all, waiting in it would hold up everybody.
    let urls = [patient.url("/1"), patient.url("/2"), other.url("/1"), other.url("/2"), other.url("/3")];
    let run = common::run(["--concurrency", "1"].map(str::to_owned).iter().chain(&urls));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.record(&urls[0])["attempts"], 2);
    assert_eq!(run.record(&urls[1])["attempts"], 1);
    let log = log.lock().unwrap();
    let names: Vec<_> = log.iter().map(|&(name, _)| name).collect();
    assert_eq!(names, ["patient", "other", "other", "other", "patient", "patient"]);
    assert!(log[4].1 - log[0].1 >= Duration::from_secs(1), "the whole host waits");
}

#[test]
fn a_transient_error_is_tried_again_so_often_and_only_where_that_is_safe() {
    let server = Server::start(|_, stream| {
        respond(stream, "503 Service Unavailable", &[], b"later")?;
        Ok(Then::Keep)
    });
    let url = server.url("/");
    let flags = ["--retry", "2", "--retry-delay", "10ms"];
    let run = common::run(flags.iter().copied().chain([url.as_str()]));
    assert_eq!(run.code, Some(1));
    let record = run.record(&url);
    assert_eq!((record["attempts"].as_u64(), record["status"].as_u64()), (Some(3), Some(503)));
    assert_eq!(record["error"]["kind"], "status");
    assert_eq!(server.asked().len(), 3);

    let post = common::run(flags.iter().copied().chain(["-d", "x", &url]));
    assert_eq!(post.record(&url)["attempts"], 1, "a POST may have done its work");
    let post = common::run(flags.iter().copied().chain(["-d", "x", "--retry-unsafe", &url]));
    assert_eq!(post.record(&url)["attempts"], 3);
}

#[test]
fn a_server_that_asks_for_more_patience_than_there_is_is_not_asked_again() {
    let server = Server::start(|_, stream| {
        respond(stream, "503 Service Unavailable", &["Retry-After: 31536000"], b"")?;
        Ok(Then::Keep)
    });
    let run = common::run([server.url("/")]);
    assert_eq!(run.record(&server.url("/"))["attempts"], 1);
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn the_deadline_of_the_batch_ends_it_with_a_record_for_each_row() {
    let door = Arc::new(Door::default());
    let inside = door.clone();
    let server = Server::start(move |_, stream| {
        inside.pass(|_| usize::MAX);
        ok(stream, b"")?;
        Ok(Then::Close)
    });
    let urls: Vec<_> = (0..200).map(|n| server.url(&format!("/{n}"))).collect();
    let run = common::run(["--deadline", "500ms", "--lookahead", "16"].map(str::to_owned).iter().chain(&urls));
    door.open();
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let records = run.records();
    let seen: HashSet<_> = records.iter().map(|record| record["url"].as_str().unwrap()).collect();
    assert_eq!((records.len(), seen.len()), (200, 200));
    for record in &records {
        assert_eq!(record["error"]["kind"], "deadline", "{record}");
    }
}

#[test]
fn rows_that_come_after_the_deadline_of_the_batch_are_told_of() {
    let server = Server::echo();
    let (url, (ended, end)) = (server.url("/1"), mpsc::channel::<()>());
    let mut command = common::program();
    command.args(["--deadline", "1s"]);
    let run = common::run_fed(&mut command, move |input| {
        writeln!(input, "{url}")?;
        let _ = end.recv(); // The input stays open until the program has ended.
        Ok(())
    });
    drop(ended);
    assert_eq!((run.code, run.records().len()), (Some(1), 1), "{}", run.stderr);
    assert!(run.stderr.contains("--deadline") && run.stderr.contains("have no record"), "{}", run.stderr);
}

#[test]
fn the_first_interruption_lets_what_runs_finish() {
    let door = Arc::new(Door::default());
    let inside = door.clone();
    let server = Server::start(move |_, stream| {
        inside.pass(|_| usize::MAX);
        ok(stream, b"done")?;
        Ok(Then::Keep)
    });
    let urls: Vec<_> = (0..20).map(|n| server.url(&format!("/{n}"))).collect();
    let mut command = common::program();
    command.args(["--concurrency", "2"]).args(&urls);
    let interrupter = {
        let door = door.clone();
        move |pid| {
            door.wait_for(2);
            signal(pid, "-INT");
        }
    };
    let run = common::run_while(&mut command, interrupter, move |stderr| {
        // Only once the program says that it stops may anything finish.
        if stderr.contains("interrupt") {
            door.open();
        }
    });
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    assert_eq!(run.records().len(), 2, "{}", run.stdout);
    assert!(run.records().iter().all(|record| record["status"] == 200));
    assert_eq!(server.asked().len(), 2, "nothing more was started");
}

#[test]
fn an_interruption_is_seen_however_much_there_is_to_do() {
    let door = Arc::new(Door::default());
    let inside = door.clone();
    let server = Server::start(move |_, stream| {
        inside.pass(|_| 0);
        ok(stream, b"done")?;
        Ok(Then::Keep)
    });
    let mut command = common::program();
    command.args(["--concurrency", "256", "--per-host", "256", &server.url("/{1..10000000}")]);
    let interrupter = move |pid| {
        door.wait_for(1_000);
        signal(pid, "-INT");
    };
    let run = common::run_while(&mut command, interrupter, |_| {});
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    // What had started was finished, and nothing else was.
    assert!(run.records().iter().all(|record| record["status"] == 200));
    assert_eq!(run.records().len(), server.asked().len());
}

#[test]
fn the_second_interruption_ends_at_once() {
    let door = Arc::new(Door::default());
    let inside = door.clone();
    let server = Server::start(move |_, stream: &mut TcpStream| {
        inside.pass(|_| usize::MAX);
        ok(stream, b"")?;
        Ok(Then::Keep)
    });
    let mut command = common::program();
    command.args(["--grace", "1h"]).arg(server.url("/"));
    let (inside, pid) = (door.clone(), Arc::new(Mutex::new(0)));
    let kept = pid.clone();
    let interrupter = move |pid| {
        *kept.lock().unwrap() = pid;
        inside.wait_for(1);
        signal(pid, "-INT");
    };
    let mut again = true;
    let run = common::run_while(&mut command, interrupter, move |stderr| {
        if stderr.contains("interrupt") && std::mem::take(&mut again) {
            signal(*pid.lock().unwrap(), "-INT");
        }
    });
    door.open();
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    assert_eq!(run.stdout, "");
}

#[test]
fn rates_are_kept() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let log = times.clone();
    let server = Server::start(move |_, stream| {
        log.lock().unwrap().push(Instant::now());
        ok(stream, b"")?;
        Ok(Then::Keep)
    });
    let urls: Vec<_> = (0..5).map(|n| server.url(&format!("/{n}"))).collect();
    for flags in [["--rate", "10/s"], ["--rate-per-host", "10/s"]] {
        times.lock().unwrap().clear();
        let run = common::run(flags.map(str::to_owned).iter().chain(&urls));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let times = times.lock().unwrap();
        // From the first to the last there are four intervals; a little less, as what arrives late is not sent late.
        assert!(times[4] - times[0] >= Duration::from_millis(300), "{:?}", times[4] - times[0]);
    }
}

#[test]
fn concurrency_is_found_while_running() {
    let server = Server::echo();
    let url = server.url("/{1..2000}");
    let run = common::run(["--concurrency", "auto", "--quiet", &url]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.records().len(), 2000);
}

#[test]
fn concurrency_comes_down_where_a_server_has_too_much_to_do() {
    const AT_ONCE: usize = 4;
    const START: usize = 8; // of auto
    const ROWS: usize = 100;
    /// How long a request stays if nobody comes in who would be too much.
    const WORK: Duration = Duration::from_millis(30);
    let inside = Arc::new((Mutex::new(Inside::default()), Condvar::new()));
    let state = inside.clone();
    let server = Server::start(move |_, stream| {
        let (state, changed) = &*state;
        let mut inside = state.lock().unwrap();
        inside.came += 1;
        inside.now += 1;
        let too_much = inside.now > AT_ONCE;
        // Those that the program starts with are there together, however slow this machine is.
        if inside.came == START {
            inside.open = true;
        } else if inside.came > START {
            inside.most = inside.most.max(inside.now);
        }
        changed.notify_all();
        inside = changed.wait_timeout_while(inside, PATIENCE, |inside| !inside.open).unwrap().0;
        if !too_much {
            inside = changed.wait_timeout_while(inside, WORK, |inside| inside.now <= AT_ONCE).unwrap().0;
        }
        inside.now -= 1;
        drop(inside);
        let status = if too_much { "429 Too Many Requests" } else { "200 OK" };
        respond(stream, status, &[], b"")?;
        Ok(Then::Keep)
    });
    let url = server.url(&format!("/{{1..{ROWS}}}"));
    let flags = ["--quiet", "--concurrency", "auto", "--retry", "1000", "--retry-delay", "10ms"];
    let run = common::run(flags.iter().chain(&["--retry-max-delay", "50ms", &url]));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let rows: HashSet<_> = run.records().iter().map(|record| record["row"].as_u64().unwrap()).collect();
    assert_eq!((run.records().len(), rows.len()), (ROWS, ROWS));
    let inside = inside.0.lock().unwrap();
    assert!(inside.came > ROWS, "nobody was sent away");
    assert!(inside.most < START, "{} at once after too many had been sent away", inside.most);
}

#[test]
fn in_order_no_row_starts_far_ahead_of_the_one_that_is_awaited() {
    const AHEAD: usize = 4096;
    let door = Arc::new(Door::default());
    let (inside, started) = (door.clone(), Arc::new(AtomicUsize::new(0)));
    let count = started.clone();
    let server = Server::start(move |asked, stream| {
        if asked.path == "/1" {
            inside.pass(|_| AHEAD);
            // One more would be here by now.
            thread::sleep(Duration::from_millis(300));
            count.store(inside.came(), Ordering::SeqCst);
        } else {
            inside.pass(|_| 0);
        }
        ok(stream, b"")?;
        Ok(Then::Keep)
    });
    let url = server.url("/{1..5000}");
    let run = common::run(["--quiet", "--ordered", "--first-byte-timeout", "80", "--concurrency", "8", &url]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(started.load(Ordering::SeqCst), AHEAD);
    let rows: Vec<_> = run.records().iter().map(|record| record["row"].as_u64().unwrap()).collect();
    assert_eq!(rows, (1..=5000).collect::<Vec<_>>());
}

#[test]
fn a_host_that_asks_for_distance_gets_it_and_holds_nobody_up() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let started = |name: &'static str, robots: &'static str| {
        let log = log.clone();
        Server::start(move |asked, stream| {
            if asked.path == "/robots.txt" {
                ok(stream, robots.as_bytes())?;
            } else {
                log.lock().unwrap().push((name, Instant::now()));
                ok(stream, b"")?;
            }
            Ok(Then::Keep)
        })
    };
    let distant = started("distant", "User-agent: *\nCrawl-delay: 1\n");
    let near = started("near", "User-agent: *\nDisallow: /private\n");
    // With one slot in all, waiting in it would hold up everybody.
    let urls = [distant.url("/{1..3}"), near.url("/{1..3}")];
    let run = common::run(["--quiet", "--polite", "--concurrency", "1"].map(str::to_owned).iter().chain(&urls));
    assert_eq!((run.code, run.records().len()), (Some(0), 6), "{}", run.stderr);
    let log = log.lock().unwrap();
    let times: Vec<_> = log.iter().filter(|(name, _)| *name == "distant").map(|&(_, time)| time).collect();
    // A little less, as the first one waited for robots.txt.
    assert!(times[2] - times[0] >= Duration::from_millis(1500), "{:?}", times[2] - times[0]);
    assert_eq!(log[5].0, "distant", "{log:?}");
}

#[test]
fn rows_with_long_bodies_are_not_read_far_ahead() {
    const ROWS: usize = 40;
    const BODY: usize = 1_000_000; // the longest line has 1 MiB
    let written = Arc::new(AtomicUsize::new(0));
    let (count, stalled_at) = (written.clone(), Arc::new(Mutex::new(None)));
    let stalled = stalled_at.clone();
    let server = Server::start(move |_, stream| {
        // Nothing is answered before the program reads no more.
        let mut stalled = stalled.lock().unwrap();
        while stalled.is_none() {
            let before = count.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(500));
            *stalled = Some(before).filter(|&before| before > 0 && before == count.load(Ordering::SeqCst));
        }
        drop(stalled);
        ok(stream, b"")?;
        Ok(Then::Keep)
    });
    let line = format!("{}\n", serde_json::json!({"url": server.url("/"), "method": "PUT", "body": "x".repeat(BODY)}));
    let mut command = common::program();
    command.args(["--quiet", "--format", "jsonl", "--from", "-", "--concurrency", "2"]);
    let run = common::run_fed(&mut command, move |stdin| {
        for _ in 0..ROWS {
            stdin.write_all(line.as_bytes())?;
            written.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    assert_eq!((run.code, run.records().len()), (Some(0), ROWS), "{}", run.stderr);
    assert!(server.asked().iter().all(|asked| asked.body.len() == BODY));
    let stalled_at = stalled_at.lock().unwrap().unwrap();
    // Two under way, eight that wait, and one or two that are being read.
    assert!(stalled_at <= 12, "{stalled_at} rows were read with two under way");
}

#[test]
fn the_exit_code_tells_whether_too_many_failed() {
    let server = Server::start(|asked, stream| {
        let status = if asked.path == "/bad" { "404 Not Found" } else { "200 OK" };
        respond(stream, status, &[], b"")?;
        Ok(Then::Keep)
    });
    let urls = [server.url("/1"), server.url("/2"), server.url("/bad")];
    let code = |flags: &[&str]| common::run(flags.iter().map(|&flag| flag.to_owned()).chain(urls.clone())).code;
    assert_eq!(code(&[]), Some(1));
    assert_eq!(code(&["--fail-above", "34%"]), Some(0));
    assert_eq!(code(&["--fail-above", "33%"]), Some(1));
    assert_eq!(common::run(&urls[..2]).code, Some(0));
}

#[test]
fn the_summary_tells_what_happened_to_people_and_to_programs() {
    let server = Server::start(|asked, stream| {
        let status = if asked.path == "/bad" { "404 Not Found" } else { "200 OK" };
        respond(stream, status, &[], b"12345")?;
        Ok(Then::Keep)
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("summary.json");
    let urls = [server.url("/1"), server.url("/bad"), "no-url".to_owned()];
    let flags = ["--summary-json".to_owned(), file.to_str().unwrap().to_owned()];
    let run = common::run(flags.iter().chain(&urls));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((report["rows"].as_u64(), report["succeeded"].as_u64()), (Some(3), Some(1)));
    assert_eq!(report["statuses"]["200"], 1);
    assert_eq!(report["statuses"]["404"], 1);
    assert_eq!(report["errors"]["bad-input"], 1);
    assert_eq!(report["interrupted"], false);
    assert!(run.stderr.contains("3 URLs in ") && run.stderr.contains("1 succeeded, 2 failed"), "{}", run.stderr);

    let quiet = common::run(["--quiet", &urls[0]]);
    assert_eq!(quiet.stderr, "");

    let records = directory.path().join("records");
    let run = common::run(["--summary-json", "-", "--records", records.to_str().unwrap(), &urls[0]]);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.code, report["rows"].as_u64()), (Some(0), Some(1)));

    // The records have nobody to read them any more.
    let mut command = common::program();
    command.args(flags.iter().chain([&server.url("/{1..100000000}")]));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((report["incomplete"].as_bool(), report["interrupted"].as_bool()), (Some(true), Some(false)));

    // A summary that nobody reads is one that could not be written.
    let mut command = common::program();
    command.args(["--quiet", "--summary-json", "-", "--resume", "--records"]).arg(&records).arg(&urls[0]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
