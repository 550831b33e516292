//! External commands: what they wrote, how they ended, and that nothing of them is left when nobody wants them any
//! more.

use std::time::Duration;

use integration_tests::{Row, eventually, rows, seconds};
use polypool::command::{Command, CommandError, CommandOutput};
use polypool::{Executor, Shutdown, TaskError, TaskFuture, TaskOptions, ThreadPool};

use crate::common::{descriptors_and_threads, look, numbers_in, soon};

pub(crate) const ONCE: &[Row<fn()>] = rows![
    command_output_is_captured_apart,
    command_that_fails_is_told_with_its_last_words,
    command_that_does_not_exist_is_told,
    command_input_of_any_size_goes_through,
    command_environment_and_folder_are_set,
    command_of_std_keeps_its_redirections,
    command_pipeline_tells_each_status,
    command_pipeline_that_can_not_start_leaves_nothing,
    command_timeout_kills_the_whole_group,
    command_cancel_kills_the_whole_group,
    command_task_timeout_and_shutdown_kill_the_whole_group,
    command_with_too_much_output_is_killed,
    command_outside_of_a_runtime_is_an_error,
    command_leaves_nothing_behind,
];

type Outcome = Result<CommandOutput, CommandError>;

fn pool() -> ThreadPool {
    ThreadPool::builder().workers(1).build().expect("a pool")
}

#[track_caller]
fn run(command: Command) -> Outcome {
    in_time(command.run_on(&pool())).expect("the task itself does not fail")
}

#[track_caller]
fn in_time<T: Send + 'static>(mut task: TaskFuture<T>) -> polypool::Outcome<T> {
    task.wait_timeout(seconds(20)).expect("an outcome")
}

/// Time enough for a shell to begin, also on a busy machine.
const LIMIT: Duration = seconds(2);

/// The children of this process that have not been waited for, zombies too.
fn children() -> Vec<u32> {
    let own = std::process::id().to_string();
    let is_ours = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rfind(')').is_some_and(|at| stat[at + 1..].split_whitespace().nth(1) == Some(&own))
    };
    numbers_in("/proc").filter(is_ours).collect()
}

#[track_caller]
fn no_child_is_left() {
    assert!(eventually(seconds(5), || children().is_empty()), "left over: {:?}", children());
}

fn is_gone(pid: u32) -> bool {
    look(pid).is_none_or(|seen| seen.is_zombie())
}

/// A command that leaves a child of its own behind and never ends; both write their numbers to a file first.
struct Endless {
    folder: tempfile::TempDir,
}

impl Endless {
    fn new() -> Self {
        Endless { folder: tempfile::tempdir().expect("a folder") }
    }

    fn command(&self) -> Command {
        // The child ignores what a polite end would be.
        let line = "(trap '' TERM HUP; sleep 1000 & wait) & echo $! $$ > pids.new; mv pids.new pids; sleep 1000";
        Command::shell(line).current_dir(self.folder.path())
    }

    /// Waits until it has begun.
    #[track_caller]
    fn pids(&self) -> Vec<u32> {
        let file = self.folder.path().join("pids");
        assert!(eventually(seconds(10), || file.exists()), "it has not begun");
        let text = std::fs::read_to_string(file).expect("its numbers");
        text.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
    }
}

#[track_caller]
fn all_gone(pids: &[u32]) {
    assert_eq!(pids.len(), 2);
    assert!(eventually(seconds(5), || pids.iter().all(|pid| is_gone(*pid))), "left over of {pids:?}");
    no_child_is_left();
}

fn command_output_is_captured_apart() {
    let output = run(Command::shell("echo out; echo err >&2; exit 3").capture()).expect("an output");
    assert_eq!((output.stdout_text().as_ref(), output.stderr_text().as_ref()), ("out\n", "err\n"));
    assert_eq!(output.status().and_then(|status| status.code()), Some(3));
    assert!(!output.success());
    let output = run(Command::new("true")).expect("an output");
    assert!(output.success() && output.stdout.is_empty());
}

fn command_that_fails_is_told_with_its_last_words() {
    let error = run(Command::shell("echo first >&2; echo why >&2; exit 4").capture().check()).unwrap_err();
    assert_eq!(error.to_string(), r#""/bin/sh" failed: exit status: 4: why"#);
    let CommandError::Failed { at: 0, output, .. } = error else { panic!("{error:?}") };
    assert_eq!(output.stderr_text(), "first\nwhy\n");
    let error = run(Command::shell("kill -9 $$").check()).unwrap_err();
    assert!(error.to_string().contains("signal: 9"), "{error}");
}

fn command_that_does_not_exist_is_told() {
    let error = run(Command::new("/no/such/program")).unwrap_err();
    assert!(matches!(&error, CommandError::Start { program, .. } if program == "/no/such/program"), "{error:?}");
    let error = run(Command::new("true").current_dir("/no/such/folder")).unwrap_err();
    assert!(matches!(error, CommandError::Start { .. }), "{error:?}");
}

fn command_input_of_any_size_goes_through() {
    for size in [0, 1, 5_000_000] {
        let input: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let output = run(Command::new("cat").input(input.clone()).capture()).expect("an output");
        assert!(output.stdout == input, "{size} bytes");
    }
    // One that reads nothing of it.
    let output = run(Command::new("true").input(vec![0; 1_000_000]).check()).expect("an output");
    assert!(output.success());
    // Without input there is none, and not the terminal.
    assert_eq!(run(Command::new("cat").capture()).expect("an output").stdout, b"");
}

fn command_environment_and_folder_are_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let command = Command::shell("echo $WORD; pwd -P").env("WORD", "a b").current_dir(folder.path());
    let path = folder.path().canonicalize().expect("its path");
    let output = run(command.capture().check()).expect("an output");
    assert_eq!(output.stdout_text(), format!("a b\n{}\n", path.display()));
}

fn command_of_std_keeps_its_redirections() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out");
    let mut command = std::process::Command::new("echo");
    command.arg("hello").stdout(std::fs::File::create(&path).expect("a file"));
    run(Command::from(command).check()).expect("it succeeds");
    assert_eq!(std::fs::read_to_string(path).expect("the file"), "hello\n");
}

fn command_pipeline_tells_each_status() {
    let codes = |output: &CommandOutput| output.statuses.iter().map(|status| status.code()).collect::<Vec<_>>();
    let pipeline =
        Command::shell("printf 'c\na\nb\n'; exit 1").pipe(Command::new("sort")).pipe(Command::shell("cat; exit 2"));
    let output = run(pipeline.capture()).expect("an output");
    assert_eq!(codes(&output), [Some(1), Some(0), Some(2)]);
    assert_eq!(output.stdout_text(), "a\nb\nc\n");
    let pipeline = Command::new("true").pipe(Command::shell("echo no >&2; exit 5")).pipe(Command::new("cat"));
    let error = run(pipeline.capture().check()).unwrap_err();
    assert!(matches!(error, CommandError::Failed { at: 1, .. }), "{error:?}");
    // The first one dies of SIGPIPE, as it should.
    let output =
        run(Command::new("yes").pipe(Command::new("head").args(["-n", "2"]).capture().check())).expect("an output");
    assert_eq!((output.stdout_text().as_ref(), codes(&output)), ("y\ny\n", vec![None, Some(0)]));
    let output = run(Command::new("cat").input("x").pipe(Command::new("cat")).capture()).expect("an output");
    assert_eq!(output.stdout, b"x");
}

fn command_pipeline_that_can_not_start_leaves_nothing() {
    let endless = Endless::new();
    let pipeline = endless.command().pipe(Command::new("cat")).pipe(Command::new("/no/such/program"));
    let error = run(pipeline).unwrap_err();
    assert!(matches!(&error, CommandError::Start { program, .. } if program == "/no/such/program"), "{error:?}");
    no_child_is_left();
}

fn command_timeout_kills_the_whole_group() {
    for capture in [false, true] {
        let endless = Endless::new();
        let command = endless.command().timeout(LIMIT);
        let command = if capture { Command::shell("echo so far; exec cat").pipe(command).capture() } else { command };
        let pool = pool();
        let waiting = command.run_on(&pool);
        let pids = endless.pids();
        match in_time(waiting).expect("the task itself does not fail") {
            Err(CommandError::TimedOut { after, output }) => {
                assert_eq!((after, output.status()), (LIMIT, None));
            }
            other => panic!("{other:?}"),
        }
        all_gone(&pids);
    }
    // What there was is kept, and whoever holds the pipe after the end of the command is killed as well.
    let began = std::time::Instant::now();
    let error = run(Command::shell("echo so far; sleep 1000 &").capture().timeout(LIMIT)).unwrap_err();
    let CommandError::TimedOut { output, .. } = error else { panic!("{error:?}") };
    assert_eq!(output.stdout_text(), "so far\n");
    assert!(began.elapsed() >= LIMIT);
    no_child_is_left();
}

fn command_cancel_kills_the_whole_group() {
    let endless = Endless::new();
    let pool = pool();
    let waiting = endless.command().run_on(&pool);
    let pids = endless.pids();
    assert!(waiting.cancel());
    assert!(soon(waiting).unwrap_err().is_cancelled());
    all_gone(&pids);

    let endless = Endless::new();
    let waiting = endless.command().pipe(Command::new("cat")).run_on(&pool).cancel_on_drop();
    let pids = endless.pids();
    drop(waiting);
    all_gone(&pids);
}

fn command_task_timeout_and_shutdown_kill_the_whole_group() {
    let endless = Endless::new();
    let own = pool();
    let options = TaskOptions::new().timeout(LIMIT);
    let waiting = own.spawn_async_with(endless.command().run(), options);
    let pids = endless.pids();
    assert!(matches!(in_time(waiting), Err(TaskError::TimedOut { .. })));
    all_gone(&pids);

    let endless = Endless::new();
    let waiting = endless.command().run_on(&own);
    let pids = endless.pids();
    own.shutdown(Shutdown::Now).wait_timeout(seconds(5)).expect("the pool ends");
    assert!(soon(waiting).unwrap_err().is_cancelled());
    all_gone(&pids);
}

fn command_with_too_much_output_is_killed() {
    for line in ["yes", "yes >&2"] {
        let error = run(Command::shell(line).capture().output_limit(100_000)).unwrap_err();
        assert!(matches!(error, CommandError::TooMuchOutput { limit: 100_000 }), "{error:?}");
        no_child_is_left();
    }
    let output = run(Command::shell("printf 12345").capture().output_limit(5)).expect("just enough");
    assert_eq!(output.stdout, b"12345");
}

fn command_outside_of_a_runtime_is_an_error() {
    let error = futures_ext::block_on(Command::new("true").run()).unwrap_err();
    assert!(matches!(error, CommandError::NoRuntime), "{error:?}");
}

fn command_leaves_nothing_behind() {
    let pool = pool();
    let one = || {
        let pipeline = Command::new("echo").arg("a").pipe(Command::new("cat")).capture();
        let output = soon(pipeline.run_on(&pool)).expect("the task").expect("an output");
        assert_eq!(output.stdout, b"a\n");
        let slow = Command::new("sleep").arg("1000").capture().timeout(Duration::from_millis(1));
        assert!(soon(slow.run_on(&pool)).expect("the task").is_err());
    };
    one();
    let before = descriptors_and_threads();
    for _ in 0..20 {
        one();
    }
    assert!(eventually(seconds(5), || descriptors_and_threads() <= before), "{:?}", descriptors_and_threads());
    no_child_is_left();
}
