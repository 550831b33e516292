//! How processes become workers, and what happens when they do not.

use std::process::{Command, Output, Stdio};
use std::time::Instant;

use integration_tests::tasks::double;
use integration_tests::{Row, eventually, millis, rows, seconds};
use polypool::{
    BuildError, CodecError, Executor, ExecutorExt, ProcessPool, Shutdown, StartMethod, SubmitError, TaskError,
};

use crate::both;
use crate::common::{
    Seen, builder, descriptors_and_threads, ends_clean, goes_on, no_process_is_left, others, signal, soon,
};

pub(crate) const ROWS: &[Row<fn()>] = both![
    p60_executable_without_init_is_told_and_no_tree_grows,
    p60_executable_that_never_answers_is_told,
    missing_executable_breaks_the_pool,
    executable_that_dies_at_once_breaks_the_pool,
    executable_of_another_kind_breaks_the_pool,
    missing_folder_breaks_the_pool,
    task_of_another_build_fails_alone,
    dead_fork_server_is_replaced,
    want_of_descriptors_breaks_the_pool_and_leaves_no_process,
    want_of_descriptors_is_no_harm_to_a_pool_that_works,
];

pub(crate) const ONCE: &[Row<fn()>] = rows![
    p60_program_without_init_gets_one_clear_error,
    p60_program_without_init_that_names_itself_grows_no_tree,
    duplicate_names_are_found_at_the_start,
    program_that_forbids_unsafe_code,
    options_that_cannot_work_are_refused_by_processes,
];

/// Why the pool is broken, which it must be within 5 s.
#[track_caller]
fn reason(pool: &ProcessPool) -> String {
    match soon(pool.submit(double { n: 1 })) {
        Err(TaskError::Rejected(SubmitError::Broken(reason))) => reason.to_string(),
        other => panic!("it should be broken, not {other:?}"),
    }
}

fn p60_executable_without_init_is_told_and_no_tree_grows(method: StartMethod) {
    // It goes on to its own code, which makes a pool.
    let pool = builder(method, 2).worker_executable(env!("CARGO_BIN_EXE_forgetful")).build().unwrap();
    let reason = reason(&pool);
    assert!(reason.contains("init()"), "{reason}");
    assert!(others().len() <= 3, "{:?}", others());
    ends_clean(&pool, Shutdown::Drain);
}

fn p60_executable_that_never_answers_is_told(method: StartMethod) {
    let pool = builder(method, 1)
        .worker_executable(env!("CARGO_BIN_EXE_forgetful"))
        .env("FORGETFUL", "sleep")
        .handshake_timeout(millis(300))
        .build()
        .unwrap();
    let start = Instant::now();
    let reason = reason(&pool);
    assert!(start.elapsed() >= millis(300));
    assert!(reason.contains("init()") && reason.contains("300ms"), "{reason}");
    ends_clean(&pool, Shutdown::Drain);
}

fn missing_executable_breaks_the_pool(method: StartMethod) {
    let pool = builder(method, 2).worker_executable("/nonexistent/the-worker").build().unwrap();
    let reason = reason(&pool);
    assert!(reason.contains("/nonexistent/the-worker"), "{reason}");
    ends_clean(&pool, Shutdown::Drain);
}

fn executable_that_dies_at_once_breaks_the_pool(method: StartMethod) {
    let pool = builder(method, 2)
        .worker_executable(env!("CARGO_BIN_EXE_forgetful"))
        .env("FORGETFUL", "exit 5")
        .build()
        .unwrap();
    let reason = reason(&pool);
    assert!(reason.contains("in a row"), "it tried more than once: {reason}");
    if method == StartMethod::Spawn {
        assert!(reason.contains("exited with code 5") && reason.contains("init()"), "{reason}");
    }
    ends_clean(&pool, Shutdown::Drain);
}

fn executable_of_another_kind_breaks_the_pool(method: StartMethod) {
    // It sends back what it reads.
    let pool = builder(method, 2).worker_executable("/bin/cat").handshake_timeout(millis(500)).build().unwrap();
    let reason = reason(&pool);
    assert!(reason.contains("in a row"), "{reason}");
    ends_clean(&pool, Shutdown::Drain);
}

fn missing_folder_breaks_the_pool(method: StartMethod) {
    let pool = builder(method, 1).current_dir("/nonexistent/folder").build().unwrap();
    let reason = reason(&pool);
    assert!(reason.contains("/nonexistent/folder"), "{reason}");
    ends_clean(&pool, Shutdown::Drain);
}

/// In `other_build`, a task of this name takes a text.
#[polypool::task(name = "greet")]
fn greet(times: u32) -> u32 {
    times
}

/// `other_build` has no such task.
#[polypool::task]
fn only_here() {}

fn task_of_another_build_fails_alone(method: StartMethod) {
    let pool = builder(method, 1).worker_executable(env!("CARGO_BIN_EXE_other_build")).build().unwrap();
    goes_on(&pool);
    for (outcome, words) in
        [(soon(pool.submit(greet { times: 1 })).map(drop), "greet"), (soon(pool.submit(only_here {})), "only_here")]
    {
        match outcome {
            Err(TaskError::Codec(error)) => {
                assert!(matches!(*error, CodecError::UnknownTask(_)), "{error:?}");
                assert!(error.to_string().contains(words), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
}

fn dead_fork_server_is_replaced(method: StartMethod) {
    if method == StartMethod::Spawn {
        return;
    }
    let pool = builder(method, 2).max_tasks_per_worker(1).build().unwrap();
    for _ in 0..3 {
        goes_on(&pool);
        let server = others().into_iter().find(|seen| seen.name == "polypool-fork").expect("a fork server");
        signal(server.pid, rustix::process::Signal::KILL);
        let tasks: Vec<_> = (0..10).map(|n| pool.submit(double { n })).collect();
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(soon(task).unwrap(), 2 * n);
        }
    }
    pool.shutdown(Shutdown::Drain).wait_timeout(seconds(10)).unwrap();
    // Workers of a dead server are nobody's children here; whoever inherits them reaps them.
    assert!(eventually(seconds(5), || others().iter().all(|seen| seen.is_zombie())));
}

/// Lets this process have `more` descriptors than now, or as many as it may.
fn limit_descriptors(more: Option<u64>) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let current = more.map_or(limit.maximum, |more| Some(descriptors_and_threads().0 as u64 + more));
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current, ..limit }).expect("a limit below the maximum");
}

fn want_of_descriptors_breaks_the_pool_and_leaves_no_process(method: StartMethod) {
    // Each number of descriptors makes another step of the start fail.
    for more in 0..30 {
        let pool = builder(method, 1).build().unwrap();
        limit_descriptors(Some(more));
        let outcome = soon(pool.submit(double { n: 2 }));
        limit_descriptors(None);
        match outcome {
            Ok(value) => assert_eq!(value, 4),
            Err(TaskError::Rejected(SubmitError::Broken(reason))) => {
                let words = ["Too many open files", "descriptors"];
                assert!(words.iter().any(|words| reason.contains(words)), "with {more} more: {reason}");
            }
            Err(error) => panic!("with {more} more: {error}"),
        }
        pool.shutdown(Shutdown::Drain).wait_timeout(seconds(10)).unwrap();
        // A fork server that can't be understood is killed; who then inherits its workers reaps them.
        let inherited = |seen: &Seen| method == StartMethod::ForkServer && seen.is_zombie();
        assert!(eventually(seconds(5), || others().iter().all(inherited)), "with {more} more: {:?}", others());
    }
}

fn want_of_descriptors_is_no_harm_to_a_pool_that_works(method: StartMethod) {
    let pool = builder(method, 3).build().unwrap();
    goes_on(&pool);
    limit_descriptors(Some(0));
    let tasks: Vec<_> = (0..1_000).map(|n| pool.submit(double { n })).collect();
    for (n, task) in (0..).zip(tasks) {
        assert_eq!(soon(task).unwrap(), 2 * n);
    }
    limit_descriptors(None);
    ends_clean(&pool, Shutdown::Drain);
}

fn run(program: &str, mode: &str) -> Output {
    let child = Command::new(program)
        .env("FORGETFUL", mode)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.wait_with_output().expect("the program ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn p60_program_without_init_gets_one_clear_error() {
    let output = run(env!("CARGO_BIN_EXE_forgetful"), "pool");
    assert_eq!(output.status.code(), Some(1));
    let words = text(&output.stderr);
    assert_eq!(words.lines().count(), 1, "one error: {words}");
    assert!(words.contains("polypool::init()") && words.contains("#[polypool::main]"), "{words}");
    no_process_is_left(seconds(0));
}

fn p60_program_without_init_that_names_itself_grows_no_tree() {
    // It may have a pool, since it says what to start; that it starts itself is told by the workers.
    let output = run(env!("CARGO_BIN_EXE_forgetful"), "name itself");
    assert!(output.status.success(), "{output:?}");
    let words = text(&output.stderr);
    assert!((3..=4).contains(&words.lines().count()), "as many as are tried: {words}");
    for line in words.lines() {
        assert!(line.contains("started to be a worker") && line.contains("polypool::init()"), "{line}");
    }
    no_process_is_left(seconds(0));
}

fn duplicate_names_are_found_at_the_start() {
    let output = run(env!("CARGO_BIN_EXE_duplicate"), "");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let words = text(&output.stderr);
    assert!(words.contains("\"twice\"") && words.contains("name = "), "{words}");
    assert_eq!(text(&output.stdout), "", "its own code does not run");
}

fn program_that_forbids_unsafe_code() {
    let output = run(env!("CARGO_BIN_EXE_forbidding"), "");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), "49 64 HELLO\n");
    no_process_is_left(seconds(0));
}

fn options_that_cannot_work_are_refused_by_processes() {
    let all = [
        (ProcessPool::builder().workers(0), "workers(0)"),
        (ProcessPool::builder().backlog(0), "backlog(0)"),
        (ProcessPool::builder().max_message_size(0), "max_message_size(0)"),
        (ProcessPool::builder().max_message_size(u64::MAX), "max_message_size"),
        (ProcessPool::builder().handshake_timeout(seconds(0)), "handshake_timeout(0)"),
        (ProcessPool::builder().name_prefix("a\0b"), "name_prefix"),
    ];
    for (builder, words) in all {
        match builder.build() {
            Err(BuildError::InvalidOption(text)) => assert!(text.contains(words), "{text}"),
            other => panic!("{words}: {other:?}"),
        }
    }
}
