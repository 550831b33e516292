//! External commands as tasks: Python's `subprocess.run`, with an end that is always clean.
//!
//! On tokio's processes. What is added: each command leads a process group, and whatever ends the wait before the
//! command (its timeout, a cancellation, a dropped future, too much output) kills that group, not just its leader, and
//! reaps what it has started. A group is only ever signalled while its leader has not been reaped, because from then on
//! its number may be somebody else's; that is why output is read to its end before anybody asks how the leader ended.
//!
//! | Python | here |
//! | --- | --- |
//! | `run(["ls", "-l"])` | `Command::new("ls").arg("-l")` and [`run`](Command::run) or [`run_on`](Command::run_on) |
//! | `capture_output=True` | [`capture`](Command::capture) |
//! | `check=True`, `CalledProcessError` | [`check`](Command::check), [`CommandError::Failed`] |
//! | `timeout=`, `TimeoutExpired` | [`timeout`](Command::timeout), [`CommandError::TimedOut`] |
//! | `input=`, `cwd=`, `env=` | [`input`](Command::input), [`current_dir`](Command::current_dir), [`env`](Command::env) |
//! | `shell=True` | [`Command::shell`] |
//! | `stdout=file`, `stderr=STDOUT` and the like | a [`std::process::Command`] that says so, by `From` |
//! | `Popen(.., stdin=other.stdout)` | [`pipe`](Command::pipe) |
//! | `returncode` | [`CommandOutput::status`] |
//! | `Popen` to talk with while it runs | [`tokio::process::Command`](https://docs.rs/tokio/latest/tokio/process/) itself |
//!
//! A program that is killed outright has no time to end its commands: they go on, as with every library. What must not
//! do that belongs into a task of a [`Process`](crate::Process), which notices.
//!
//! ```
//! use polypool::ThreadPool;
//! use polypool::command::Command;
//!
//! let pool = ThreadPool::new()?;
//! let output = Command::new("printf").arg("b\nc\na\n").pipe(Command::new("sort")).capture().run_on(&pool).wait()??;
//! assert_eq!(output.stdout_text(), "a\nb\nc\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::borrow::Cow;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;

use crate::future::TaskFuture;
use crate::options::TaskOptions;
use crate::thread::ThreadPool;

/// How much output is kept when [`Command::output_limit`] is not called, in bytes.
pub const DEFAULT_OUTPUT_LIMIT: usize = 64 << 20;

/// A command, or several that are joined by pipes.
///
/// Its standard input is empty, unless [`input`](Self::input) says otherwise: a command in a process group of its own
/// could not read the terminal. Its output goes where that of this program goes, unless it is
/// [captured](Self::capture).
#[derive(Debug)]
#[must_use = "a command does nothing until .run() or .run_on(pool)"]
pub struct Command {
    stages: Vec<std::process::Command>,
    input: Option<Vec<u8>>,
    capture: bool,
    check: bool,
    timeout: Option<Duration>,
    limit: usize,
}

impl Command {
    /// A program, by its path or by a name that is looked for in `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = std::process::Command::new(program);
        command.stdin(Stdio::null());
        command.into()
    }

    /// A line for `/bin/sh`. What comes from elsewhere does not belong into it, but into [`arg`](Self::arg).
    pub fn shell(line: impl AsRef<OsStr>) -> Self {
        Self::new("/bin/sh").arg("-c").arg(line)
    }

    /// Adds an argument; after a [`pipe`](Self::pipe), to the last command.
    pub fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.change(|command| command.arg(arg))
    }

    /// Adds arguments.
    pub fn args(self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.change(|command| command.args(args))
    }

    /// Sets a variable of its environment, which otherwise is that of this program.
    pub fn env(self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.change(|command| command.env(name, value))
    }

    /// Where it runs; by default where this program does.
    pub fn current_dir(self, path: impl AsRef<Path>) -> Self {
        self.change(|command| command.current_dir(path))
    }

    fn change(mut self, how: impl FnOnce(&mut std::process::Command) -> &mut std::process::Command) -> Self {
        if let Some(last) = self.stages.last_mut() {
            how(last);
        }
        self
    }

    /// Makes the output of this one the input of the next: `a | b`. The options of both hold for the whole.
    pub fn pipe(mut self, next: impl Into<Command>) -> Self {
        let next = next.into();
        self.stages.extend(next.stages);
        self.capture |= next.capture;
        self.check |= next.check;
        self.timeout = [self.timeout, next.timeout].into_iter().flatten().min();
        self.limit = self.limit.min(next.limit);
        self
    }

    /// What the (first) command reads from its standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Keeps what it writes to standard output and standard error, instead of passing it on.
    pub fn capture(mut self) -> Self {
        self.capture = true;
        self
    }

    /// Makes it an error, [`CommandError::Failed`], if it does not [succeed](CommandOutput::success).
    pub fn check(mut self) -> Self {
        self.check = true;
        self
    }

    /// How long it may take. Then its process groups are killed, and [`CommandError::TimedOut`] has what was captured
    /// so far.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How much captured output, of each of the two kinds and in bytes, is too much; by default
    /// [`DEFAULT_OUTPUT_LIMIT`]. Then the groups are killed, and the outcome is [`CommandError::TooMuchOutput`].
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Runs it, on the tokio runtime that polls this (with its drivers for input, output and time enabled, as
    /// `#[polypool::main]` and [`spawn_async`](ThreadPool::spawn_async) have them).
    ///
    /// It ends when the commands have ended and, if output is captured, all who have inherited the
    /// pipe for it have closed that: a daemon that a command leaves behind with its standard output open is waited for.
    ///
    /// # Errors
    /// See [`CommandError`].
    ///
    /// # Cancellation safety
    /// Dropping the future kills the process groups of its commands.
    pub async fn run(self) -> Result<CommandOutput, CommandError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(CommandError::NoRuntime);
        }
        let Command { stages, input, capture, check, timeout, limit } = self;
        let programs: Vec<String> = stages.iter().map(|s| s.get_program().to_string_lossy().into_owned()).collect();
        let mut running = Running::start(stages, &programs, input.is_some(), capture)?;
        let mut captured = Captured { out: Vec::new(), err: programs.iter().map(|_| Vec::new()).collect() };
        let driven = running.drive(input, &mut captured, limit);
        let statuses = match timeout {
            None => driven.await?,
            Some(after) => match tokio::time::timeout(after, driven).await {
                Ok(result) => result?,
                Err(_) => {
                    drop(running);
                    return Err(CommandError::TimedOut { after, output: Box::new(captured.output(Vec::new())) });
                }
            },
        };
        let output = captured.output(statuses);
        match output.failed() {
            Some(at) if check => {
                Err(CommandError::Failed { program: programs[at].clone(), at, output: Box::new(output) })
            }
            _ => Ok(output),
        }
    }

    /// Runs it on the asynchronous side of a pool, whose [`async_limit`](crate::ThreadPoolBuilder::async_limit) then
    /// bounds how many run at once.
    ///
    /// Cancelling the future, or a timeout in options ([`spawn_async_with`](ThreadPool::spawn_async_with) and
    /// [`run`](Self::run)), kills the process groups.
    ///
    /// ```
    /// use std::time::Duration;
    /// use polypool::ThreadPool;
    /// use polypool::command::{Command, CommandError};
    ///
    /// let pool = ThreadPool::new()?;
    /// let slow = Command::new("sleep").arg("100").timeout(Duration::from_millis(20)).run_on(&pool);
    /// assert!(matches!(slow.wait()?, Err(CommandError::TimedOut { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run_on(self, pool: &ThreadPool) -> TaskFuture<Result<CommandOutput, CommandError>> {
        let programs: Vec<_> = self.stages.iter().map(|s| s.get_program().to_string_lossy()).collect();
        let options = TaskOptions::new().name(programs.join(" | "));
        pool.spawn_async_with(self.run(), options)
    }
}

/// Takes over program, arguments, environment, directory and redirections, such as `stdout(file)`. What is captured,
/// given as input or piped replaces the redirection of that stream.
impl From<std::process::Command> for Command {
    fn from(command: std::process::Command) -> Self {
        Command {
            stages: vec![command],
            input: None,
            capture: false,
            check: false,
            timeout: None,
            limit: DEFAULT_OUTPUT_LIMIT,
        }
    }
}

/// How commands ended, and what they wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandOutput {
    /// How each of the commands ended, in the order of the pipeline; empty after a timeout.
    pub statuses: Vec<ExitStatus>,
    /// What the last one wrote to standard output, if that was captured.
    pub stdout: Vec<u8>,
    /// What they wrote to standard error, one after the other, if that was captured.
    pub stderr: Vec<u8>,
}

impl CommandOutput {
    /// How the last command ended, as a shell's `$?`; `None` after a timeout.
    #[must_use]
    #[doc(alias = "returncode")]
    pub fn status(&self) -> Option<ExitStatus> {
        self.statuses.last().copied()
    }

    /// Whether all commands exited with code 0. A command that died of SIGPIPE counts, unless it's the last one: that
    /// is how a pipeline ends whose reader has read enough.
    #[must_use]
    pub fn success(&self) -> bool {
        !self.statuses.is_empty() && self.failed().is_none()
    }

    /// The first command that failed.
    fn failed(&self) -> Option<usize> {
        let last = self.statuses.len().saturating_sub(1);
        self.statuses.iter().enumerate().position(|(at, status)| {
            let has_read_enough = at < last && status.signal() == Some(Signal::PIPE.as_raw());
            !status.success() && !has_read_enough
        })
    }

    /// Standard output as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn stdout_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Standard error as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn stderr_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }
}

/// Why a command has no output, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It could not be started. Those before it in the pipeline have been killed.
    #[error("{program:?} could not be started: {source}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It was to be [checked](Command::check), and did not succeed.
    #[error("{program:?} failed: {}{}", output.statuses[*at], last_words(output))]
    Failed {
        /// The program; the first one of a pipeline that failed.
        program: String,
        /// Its place in the pipeline, from 0.
        at: usize,
        /// What there is nevertheless.
        output: Box<CommandOutput>,
    },
    /// It took longer than its [timeout](Command::timeout), and was killed.
    #[error("the command took longer than its timeout of {after:?}")]
    TimedOut {
        /// The timeout.
        after: Duration,
        /// What had been captured by then.
        output: Box<CommandOutput>,
    },
    /// It wrote more than its [limit](Command::output_limit), and was killed.
    #[error("the command wrote more than {limit} bytes; raise that with output_limit, or redirect it to a file")]
    TooMuchOutput {
        /// The limit in bytes.
        limit: usize,
    },
    /// It was polled outside of a tokio runtime.
    #[error("a command needs a tokio runtime: use run_on(&pool), or #[polypool::main] on an async fn main")]
    NoRuntime,
    /// Its output could not be read, its input not written, or its end not be waited for.
    #[error("the command could not be looked after: {0}")]
    Io(#[from] io::Error),
}

/// The last line of standard error, for a message.
fn last_words(output: &CommandOutput) -> String {
    output.stderr_text().trim().lines().last().map_or_else(String::new, |line| format!(": {line}"))
}

struct Captured {
    out: Vec<u8>,
    err: Vec<Vec<u8>>,
}

impl Captured {
    fn output(self, statuses: Vec<ExitStatus>) -> CommandOutput {
        CommandOutput { statuses, stdout: self.out, stderr: self.err.concat() }
    }
}

/// Commands that have been started. Whoever drops it ends them.
struct Running {
    children: Vec<Child>,
}

impl Running {
    fn start(
        stages: Vec<std::process::Command>,
        programs: &[String],
        has_input: bool,
        capture: bool,
    ) -> Result<Self, CommandError> {
        let mut running = Running { children: Vec::new() };
        let last = stages.len() - 1;
        let mut stdin = has_input.then(Stdio::piped);
        // Each is dropped when it has been started: it holds our end of its pipes.
        for (at, stage) in stages.into_iter().enumerate() {
            let mut command = tokio::process::Command::from(stage);
            command.process_group(0);
            if let Some(stdin) = stdin.take() {
                command.stdin(stdin);
            }
            if at < last {
                let (reader, writer) = io::pipe()?;
                command.stdout(writer);
                stdin = Some(reader.into());
            } else if capture {
                command.stdout(Stdio::piped());
            }
            if capture {
                command.stderr(Stdio::piped());
            }
            let child =
                command.spawn().map_err(|source| CommandError::Start { program: programs[at].clone(), source })?;
            running.children.push(child);
        }
        Ok(running)
    }

    async fn drive(
        &mut self,
        input: Option<Vec<u8>>,
        captured: &mut Captured,
        limit: usize,
    ) -> Result<Vec<ExitStatus>, CommandError> {
        let stdin = self.children.first_mut().and_then(|child| child.stdin.take());
        let feeding = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                match stdin.write_all(&input).await {
                    // It has read what it wanted.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                    result => result?,
                }
            }
            Ok(())
        };
        let stdout = self.children.last_mut().and_then(|child| child.stdout.take());
        let stderrs: Vec<_> = self.children.iter_mut().map(|child| child.stderr.take()).collect();
        let errors = stderrs.into_iter().zip(&mut captured.err).map(|(from, into)| read(from, into, limit));
        tokio::try_join!(feeding, read(stdout, &mut captured.out, limit), futures_util::future::try_join_all(errors))?;
        let mut statuses = Vec::with_capacity(self.children.len());
        for child in &mut self.children {
            statuses.push(child.wait().await?);
        }
        Ok(statuses)
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>, limit: usize) -> Result<(), CommandError> {
    let Some(mut from) = from else { return Ok(()) };
    while from.read_buf(into).await? > 0 {
        if into.len() > limit {
            return Err(CommandError::TooMuchOutput { limit });
        }
    }
    Ok(())
}

impl Drop for Running {
    fn drop(&mut self) {
        self.children.retain(|child| pid_of(child).is_some());
        for child in &self.children {
            if let Some(pid) = pid_of(child) {
                // Fails when the whole group has ended, which is what is wanted.
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
        let children = std::mem::take(&mut self.children);
        if children.is_empty() {
            return;
        }
        // A killed process may take its time to die, in the middle of some system calls; that is not waited for here.
        // (Without a thread, tokio reaps them at its next opportunity.)
        let _ = std::thread::Builder::new().name("polypool-reap".to_owned()).spawn(|| reap(children));
    }
}

/// Waits until all have ended.
fn reap(children: Vec<Child>) {
    for mut child in children {
        if let Some(pid) = pid_of(&child) {
            // Leaves it to tokio's handle, which then knows that the number is no longer its own.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(pid), look), Err(rustix::io::Errno::INTR)) {}
        }
        let _ = child.try_wait();
    }
}

/// The number of a command that has not been waited for.
fn pid_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

/// The future of a command can go to any thread.
const _: fn() = || {
    fn is_send(_: impl Future + Send + 'static) {}
    is_send(Command::new("").run());
};
