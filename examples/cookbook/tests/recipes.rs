//! Runs every recipe and checks what it prints, and that the list of recipes in the README, the links of the guide, the
//! programs and the checks are the same.
//!
//! Where the order of lines isn't determined, they are compared as a sorted set or by what must hold. Times are left
//! out. A recipe that hangs is killed and fails.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

const LIMIT: Duration = Duration::from_secs(60);
const WRONG_KEY: &str = "sixteen bytes or more, but other ones";
const KEY: &str = "sixteen bytes or more";

/// What a recipe must print.
enum Expect {
    /// This text.
    Exactly(&'static str),
    /// These lines, in any order.
    AnyOrder(&'static str),
    /// Lines of which this holds.
    Lines(fn(&[&str])),
    /// This text, and on a terminal a bar that ends at 100 % and shows these texts.
    Bar(&'static str, &'static [&'static str]),
}
use Expect::{AnyOrder, Bar, Exactly, Lines};

/// One test for each recipe, and the list of them.
macro_rules! recipes {
    ($($name:ident => $expect:expr;)*) => {
        const CHECKED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                check(env!(concat!("CARGO_BIN_EXE_", stringify!($name))), $expect);
            }
        )*
    };
}

const COUNTS: &str = "くさ 3\nどく 3\nひこう 1\nほのお 3\nみず 3\n";
const PRIMES: &str =
    "10897409 is prime: true\n20292113 is prime: true\n31518271 is prime: true\n40003027 is prime: true\n";
const SQUARES: &str = "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n";

recipes! {
    // Threads.
    threads_basic => Lines(|lines| {
        let (last, ticks) = lines.split_last().unwrap();
        assert_eq!(*last, "6 ticks in # ms");
        for name in ["t1", "t2"] {
            let own: Vec<_> = ticks.iter().filter(|line| line.starts_with(name)).collect();
            assert_eq!(own, [1, 2, 3].map(|n| format!("{name}: tick {n}")).iter().collect::<Vec<_>>());
        }
    });
    threads_cpu_bound => Exactly("1 at once: [5999995] in # ms\n2 at once: [5999995, 5999995] in # ms\n");
    fizz_buzz_sequential => Lines(|lines| {
        fizz_buzz(lines);
        let numbers: Vec<_> = lines[..10].iter().map(|line| &line[..5]).collect();
        assert_eq!(numbers, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5].map(|n| format!("job {n}")));
    });
    fizz_buzz_threads => Lines(fizz_buzz);
    thread_names => AnyOrder(
        "worker-0 sees [\"worker-0\", \"worker-1\"]\nworker-1 sees [\"worker-0\", \"worker-1\"]\nmain started them\n",
    );
    timer => Exactly(
        "timer 3 cancelled: true\ntimer 1 fires after # ms\ntimer 2 fires after # ms\nnot fired: the task was cancelled\n\
         timer 4 fires after # ms\ntimer 5 fires after # ms\n",
    );
    timer_periodic => Exactly("tick 1\ntick 2\ntick 3\ncancelled: true\nactive: false\n");
    daemon_thread => Lines(|lines| {
        assert!(lines.starts_with(&["running..."; 3]), "{lines:?}");
        let others: Vec<_> = lines.iter().copied().filter(|line| *line != "running...").collect();
        assert_eq!(others, ["request: hello", "end of t2", "end of main"]);
    });
    race_lost_update => Exactly("final: 1, not 3\n");
    counter_lock => Exactly("1\n2\n3\nfinal: 3\n");
    counter_try_lock => Exactly(
        "t2: the lock is taken, so something else meanwhile\nt1: counted to 1\nt2: counted to 2\n",
    );
    deadlock_timeout => Exactly("t1: deadlock detected, gives a back\nt2: has b and a\n");
    reentrant_lock => Exactly("times 0\ntimes 1\ntimes 2\ntimes 3\nn = 3\n");
    bounded_semaphore_download => Lines(|lines| {
        let (last, lines) = lines.split_last().unwrap();
        assert_eq!(*last, "all done");
        let mut running = BTreeSet::new();
        for line in lines {
            match line.split_once(' ').unwrap() {
                ("start", n) => assert!(running.insert(n)),
                (_, n) => assert!(running.remove(n)),
            }
            assert!(running.len() <= 2, "{lines:?}");
        }
        assert_eq!(lines.len(), 10);
    });
    event_start => Lines(|lines| {
        assert_eq!(lines[..2], ["t3 start", "t3 end"]);
        assert_eq!(sorted(&lines[2..]), ["t1 runs", "t2 runs"]);
    });
    condition_start => Lines(|lines| {
        assert_eq!(lines[..2], ["t3 start", "t3 end"]);
        let one = ["t1 start", "t1 end", "t2 start", "t2 end"];
        let other = ["t2 start", "t2 end", "t1 start", "t1 end"];
        assert!(lines[2..] == one || lines[2..] == other, "{lines:?}");
    });
    barrier_pairs => AnyOrder(
        "passed through the barrier\npassed through the barrier\na worker goes on\na worker goes on\na worker goes on\n\
         a worker goes on\na worker is left over: the barrier is broken: somebody waited in vain\nbroken: true\n",
    );
    thread_local => Exactly("worker: x = 1\nmain: x = 0\n");
    queue_thread_pool => Lines(|lines| {
        assert_eq!(*lines.last().unwrap(), "all done");
        assert_eq!(lines.len(), 12);
        for n in 0..5 {
            let at = |what: &str| lines.iter().position(|line| *line == format!("{what} {n}")).unwrap();
            assert!(at("working on") < at("finished"));
        }
    });
    queue_order => Exactly(
        "lifo: 3 2 1\npriority: first second third\nput_nowait: the queue is full\nget_nowait: item\n\
         get_nowait: the queue is empty\n",
    );
    word_counter_sequential => Exactly(COUNTS);
    word_counter_thread => Exactly("くさ 1\nどく 1\nひこう 1\nほのお 1\nみず 1\n");
    word_counter_lock => Exactly(COUNTS);
    word_counter_semaphore => Exactly(COUNTS);

    // Processes.
    processes_cpu_bound => Exactly("1 at once: [5999995] in # ms\n2 at once: [5999995, 5999995] in # ms\n");
    fizz_buzz_processes => Lines(fizz_buzz);
    word_counter_process => Exactly("the processes have counted 13 words\nmain: {}\n");
    word_counter_pipe => Exactly(COUNTS);
    process_isolation => Exactly("child: 1\nmain: 0\n");
    process_handle => Exactly(
        "p1 is alive: true, in time: false\nchildren: 1\np1 has a parent: true\nended: exited with code 0, exit code Some(0)\n\
         ended: was killed by signal 15, exit code None, signal Some(15)\nits result is an error: true\n",
    );
    process_lock_print => Lines(|lines| {
        assert_eq!(lines.len(), 10);
        for pair in lines.chunks(2) {
            assert_eq!(pair[0].strip_suffix(" start").unwrap(), pair[1].strip_suffix(" end").unwrap());
        }
        assert_eq!(lines.iter().collect::<BTreeSet<_>>().len(), 10);
    });
    process_lock_death => Exactly(
        "the task failed: true\nthe holder has died, the value is 1\nrepaired: true\n",
    );
    pipe_roundtrip => Exactly("(42, None, \"hello\")\nthank you\nend of the pipe\n");
    process_queue => Exactly("first message\nsecond message\n");
    value_counter => Exactly("100\n");
    value_counter_big => Lines(|lines| {
        assert_eq!(lines[..2], ["under the lock: 200000", "atomic: 200000"]);
        let wrong: u32 = lines[2].strip_prefix("in two steps: ").unwrap().parse().unwrap();
        assert!((2..=200_000).contains(&wrong), "{wrong}");
    });
    value_array_negate => Exactly("1\n[-0.1, -0.2, -0.3]\n");
    array_square => Exactly("[1, 4, 9, 16]\n");
    array_double => Exactly("[2, 4, 6]\n");
    manager_basics => Exactly(
        "[(Int(1), Str(\"1\")), (Str(\"2\"), Int(2)), (Float(0.25), Null)]\n[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]\n\
         x=Some(10) y=Some(\"hello\")\n",
    );
    manager_append => Lines(|lines| {
        let list = lines[0].strip_prefix('[').unwrap().strip_suffix(']').unwrap();
        assert_eq!(sorted(&list.split(", ").collect::<Vec<_>>()), ["0", "10", "20", "30", "40"]);
    });
    shared_memory_bytes => Exactly("[11, 22, 33, 44]\nPython\n");
    shareable_list => Exactly(
        "Int(0)\nFloat(3.141592)\nBool(false)\nStr(\"aaa\")\nStr(\"Hello World\")\n\
         count(false) = 1, index(\"aaa\") = Some(3)\nslot 4 has room for 16 bytes, and the value takes 20\n",
    );
    shareable_list_manager => Exactly("[Int(2), Int(4), Str(\"Hello World\")]\n");
    pool_apply => Exactly(SQUARES);
    pool_apply_async => Exactly(SQUARES);
    pool_map_async => Exactly(SQUARES);
    dummy_pool => Exactly(SQUARES);
    pool_callbacks => Exactly(
        "callback: 5\nerror callback: 10 / 0\nstarmap: [3, 2]\nimap: [1, 2, 3]\nimap_unordered, sorted: [1, 2, 3]\n",
    );

    // Executors.
    primes_single => Exactly(PRIMES);
    primes_submit => Exactly(PRIMES);
    primes_map => Exactly(PRIMES);
    primes_callback => AnyOrder(PRIMES);
    as_completed_http => Lines(|lines| {
        let (last, answers) = lines.split_last().unwrap();
        assert_eq!(*last, "unfinished 1 of 6");
        assert_eq!(sorted(answers), ["-1: error: HTTP/1.0 400 Bad Request", "1", "2", "3", "4"]);
    });
    executor_lock => Exactly("1\n2\n3\nfinal: 3\n");
    executor_crash => Exactly("1\n2: its worker was killed by signal 6\n3\n");
    futures_wait => Exactly(
        "first completed: 1 done, 3 not\nfirst failure: true, 2 not done\ncancel: true, done: true\n\
         all, with a timeout: Err(\"the task was cancelled\"), 1 not done\nall: Some(2)\n",
    );

    // Commands and progress bars.
    subprocess_capture => Lines(|lines| {
        assert_eq!(lines[0], "return code Some(0)");
        assert!(lines.iter().any(|line| line.starts_with('-') && line.ends_with(" Cargo.toml")), "{lines:?}");
    });
    subprocess_check => Exactly("return code Some(1)\nstderr: so be it\n");
    subprocess_timeout => Exactly("timed out after 100ms\n");
    subprocess_pipeline => Exactly("Cargo.toml\n");
    subprocess_popen => Exactly(
        "poll: None\ncommunicate: hello\nreturn code Some(0)\nkilled, return code None\n",
    );
    progress_basic => Bar("sum: 4950\n", &["100/100 ["]);
    progress_format => Bar("2000000 of 2000000 bytes\n", &["reading", "2.0M/2.0MB", "disk=sda"]);
    progress_dynamic => Bar(
        "step 25: loss 0.277\nstep 50: loss 0.077\n50 of 50 steps\n", &["warming up", "training", "50/50 ["],
    );
    progress_process_pool => Bar("sum: 328350\n", &["squares", "100/100 ["]);
}

/// These three are one check: `manager_remote_queue`.
const CHECKED_TOGETHER: [&str; 3] =
    ["manager_remote_queue_server", "manager_remote_queue_put", "manager_remote_queue_get"];

#[test]
fn manager_remote_queue() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_manager_remote_queue_server"));
    let server = server.arg("0").env("POLYPOOL_KEY", KEY).process_group(0).stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let watchdog = Watchdog::over(&server);
    let mut address = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let client = |program: &str, key: &str| run(Command::new(program).arg(address.trim()).env("POLYPOOL_KEY", key));
    let (put, get) = (env!("CARGO_BIN_EXE_manager_remote_queue_put"), env!("CARGO_BIN_EXE_manager_remote_queue_get"));

    let refused = client(put, WRONG_KEY);
    let putting = client(put, KEY);
    let getting = client(get, KEY);
    server.kill().unwrap();
    server.wait().unwrap();
    drop(watchdog);
    assert!(!refused.status.success() && text(&refused.stderr).contains("key"), "{refused:?}");
    assert!(putting.status.success(), "{putting:?}");
    assert_eq!(text(&getting.stdout), "hello\n", "{getting:?}");
}

/// Whoever adds a recipe lists it, checks it and links it; whoever lists one writes it.
#[test]
fn each_recipe_is_listed_checked_and_linked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs: BTreeSet<String> = fs::read_dir(root.join("src/bin"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let checked: Vec<String> = CHECKED.iter().chain(&CHECKED_TOGETHER).map(|name| (*name).to_owned()).collect();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let guide = fs::read_to_string(root.join("../../executor/src/from_python.md")).unwrap();
    assert_same("checked", checked, &programs);
    assert_same("listed in README.md", linked(&readme, "](src/bin/"), &programs);
    assert_same("defined as a link in from_python.md", linked(&guide, "/examples/cookbook/src/bin/"), &programs);
    for name in programs {
        assert!(guide.matches(&format!("[{name}]")).count() > 1, "no link of from_python.md leads to {name}");
    }
}

/// The names that a Python programmer may search the guide for.
const PYTHON_NAMES: &str = "
    Thread start join is_alive ident daemon current_thread enumerate Timer cancel Lock acquire release blocking timeout RLock
    Semaphore BoundedSemaphore ValueError Event set clear wait is_set Condition wait_for notify notify_all Barrier action abort reset
    BrokenBarrierError local GIL
    Queue LifoQueue PriorityQueue SimpleQueue put get put_nowait get_nowait Full Empty qsize task_done maxsize
    Process exitcode pid terminate kill close current_process active_children parent_process fork spawn forkserver
    set_start_method freeze_support cpu_count getpid getppid getuid getgid getpriority setpriority
    Pipe duplex send recv send_bytes recv_bytes maxlength poll EOFError OSError JoinableQueue Value get_lock Array
    Manager dict list Namespace BaseManager register get_server serve_forever connect address authkey
    SharedMemory buf size unlink ShareableList count index SharedMemoryManager
    Pool initializer initargs maxtasksperchild apply apply_async callback error_callback map chunksize map_async imap imap_unordered
    starmap starmap_async ready successful dummy ThreadPool
    Future cancelled running done result exception add_done_callback submit shutdown cancel_futures ThreadPoolExecutor
    max_workers thread_name_prefix ProcessPoolExecutor mp_context max_tasks_per_child as_completed return_when
    run stdin stdout stderr capture_output shell cwd check returncode check_returncode CalledProcessError TimeoutExpired Popen
    communicate send_signal
    tqdm iterable desc total leave file ncols mininterval disable unit unit_scale bar_format initial position postfix colour
    update set_description set_postfix
";

#[test]
fn guide_answers_every_python_name() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../executor/src/from_python.md");
    let guide = fs::read_to_string(guide).unwrap();
    // Only the first column counts, where Python's names are.
    let rows = guide.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let answered: BTreeSet<&str> = rows.flat_map(|row| row.split(|c: char| !c.is_alphanumeric() && c != '_')).collect();
    let missing: Vec<_> = PYTHON_NAMES.split_whitespace().filter(|name| !answered.contains(name)).collect();
    assert!(missing.is_empty(), "the guide has no row for {missing:?}");
}

/// Names of programs that follow `before` and end with `.rs`.
fn linked(page: &str, before: &str) -> Vec<String> {
    page.split(before).skip(1).map(|rest| rest.split_once(".rs").unwrap().0.to_owned()).collect()
}

fn assert_same(what: &str, names: Vec<String>, programs: &BTreeSet<String>) {
    let set: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(set.len(), names.len(), "a recipe is {what} twice: {names:?}");
    let (missing, unknown) = (programs - &set, &set - programs);
    assert!(missing.is_empty(), "not {what}: {missing:?}");
    assert!(unknown.is_empty(), "{what}, but there is no such program: {unknown:?}");
}

fn fizz_buzz(lines: &[&str]) {
    let (last, lines) = lines.split_last().unwrap();
    assert_eq!(*last, "all in # ms");
    assert_eq!(lines.len(), 10);
    for (job, words) in (1..=5).zip([466_667, 373_333, 280_000, 186_667, 93_333]) {
        let at = |what: &str| {
            lines.iter().position(|line| *line == what).unwrap_or_else(|| panic!("{what} is not in {lines:#?}"))
        };
        let end = format!("job {job}: end, {words} words, # ms, # ms since the beginning");
        assert!(at(&format!("job {job}: start")) < at(&end));
    }
}

fn check(program: &str, expect: Expect) {
    if let Bar(_, shown) = expect {
        let screen = on_a_terminal(program);
        for part in shown.iter().chain(&["100%"]) {
            assert!(screen.contains(part), "{part:?} is not on the screen: {screen}");
        }
    }
    let output = run(&mut Command::new(program));
    let (printed, complaints) = (without_times(text(&output.stdout)), text(&output.stderr));
    assert!(output.status.success(), "{}, after it had printed:\n{printed}{complaints}", output.status);
    let lines: Vec<&str> = printed.lines().collect();
    match expect {
        Exactly(expected) | Bar(expected, _) => assert_eq!(printed, expected, "{complaints}"),
        AnyOrder(expected) => assert_eq!(sorted(&lines), sorted(&expected.lines().collect::<Vec<_>>())),
        Lines(hold) => hold(&lines),
    }
}

/// What the program writes to a standard error that is a terminal.
fn on_a_terminal(program: &str) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let reader = thread::spawn(move || {
        let (mut screen, mut terminal) = (Vec::new(), File::from(terminal));
        // The end of a terminal is an error: nobody has it open any more.
        let _ = terminal.read_to_end(&mut screen);
        String::from_utf8_lossy(&screen).into_owned()
    });
    let mut child = Command::new(program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::options().read(true).write(true).open(name).unwrap())
        .env("TERM", "xterm")
        .process_group(0)
        .spawn()
        .unwrap();
    let _watchdog = Watchdog::over(&child);
    assert!(child.wait().unwrap().success());
    reader.join().unwrap()
}

fn run(command: &mut Command) -> Output {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let _watchdog = Watchdog::over(&child);
    child.wait_with_output().unwrap()
}

/// Kills the group of a process, with all who hold its output open, if it isn't dropped within the limit. For a process
/// that leads a group of its own.
struct Watchdog {
    _alive: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    fn over(child: &Child) -> Self {
        let (alive, end) = channel::<()>();
        let pid = Pid::from_child(child);
        thread::spawn(move || {
            if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
        });
        Watchdog { _alive: alive }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn sorted<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let mut lines = lines.to_vec();
    lines.sort_unstable();
    lines
}

/// With `#` in place of each number of milliseconds.
fn without_times(printed: &str) -> String {
    let mut parts = printed.split(" ms");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.truncate(text.trim_end_matches(|digit: char| digit.is_ascii_digit()).len());
        text += "# ms";
        text += part;
    }
    text
}
