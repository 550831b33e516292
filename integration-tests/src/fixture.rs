//! The executors that must keep the contract.

use std::sync::Arc;

use polypool::{BuildError, Executor, ProcessPool, StartMethod, ThreadPool};

use crate::gate::Traces;
use crate::tasks::{self, Whereabouts};

/// An executor, as a service would hold it.
pub type Pool = Arc<dyn Executor>;

/// All of them. One more executor is one more line.
pub const EXECUTORS: &[&'static dyn Fixture] = &[
    &Threads,
    &Processes("processes-spawn", StartMethod::Spawn),
    #[cfg(target_os = "linux")]
    &Processes("processes-forkserver", StartMethod::ForkServer),
];

/// What a pool is to be like; what is `None` stays at the default of the pool.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// How many workers.
    pub workers: Option<usize>,
    /// How many tasks may wait.
    pub backlog: Option<usize>,
    /// What the names of the workers begin with.
    pub name_prefix: Option<String>,
    /// What runs in each worker first.
    pub initializer: Option<Initializer>,
}

impl Spec {
    /// A pool with so many workers.
    #[must_use]
    pub fn workers(workers: usize) -> Self {
        Spec { workers: Some(workers), ..Spec::default() }
    }

    /// With a limit of its backlog.
    #[must_use]
    pub fn backlog(mut self, tasks: usize) -> Self {
        self.backlog = Some(tasks);
        self
    }

    /// With names that begin so.
    #[must_use]
    pub fn name_prefix(mut self, prefix: &str) -> Self {
        self.name_prefix = Some(prefix.to_owned());
        self
    }

    /// With an initialiser.
    #[must_use]
    pub fn initializer(mut self, initializer: Initializer) -> Self {
        self.initializer = Some(initializer);
        self
    }
}

/// An initialiser that leaves a trace and an effect, and may fail; see [`tasks::initialize()`].
#[derive(Clone, Debug)]
pub struct Initializer {
    /// Where it leaves its trace.
    pub traces: Traces,
    /// The message it fails with, if it is to fail.
    pub failure: Option<String>,
}

/// One executor of the table.
pub trait Fixture: Sync {
    /// Its name in the names of the trials.
    fn name(&self) -> &'static str;

    /// Makes a pool.
    ///
    /// # Errors
    /// Those of the pool's builder.
    fn try_build(&self, spec: Spec) -> Result<Pool, BuildError>;

    /// Whether its workers are processes.
    fn has_processes(&self) -> bool;

    /// The number of workers it promises when none is given.
    fn default_workers(&self) -> usize;

    /// Makes a pool of so many workers.
    ///
    /// # Panics
    /// If it can't.
    #[track_caller]
    fn pool(&self, workers: usize) -> Pool {
        self.build(Spec::workers(workers))
    }

    /// Makes a pool.
    ///
    /// # Panics
    /// If it can't.
    #[track_caller]
    fn build(&self, spec: Spec) -> Pool {
        match self.try_build(spec) {
            Ok(pool) => pool,
            Err(error) => panic!("the pool could not be made: {error}"),
        }
    }

    /// What tells its workers apart.
    fn worker(&self, whereabouts: &Whereabouts) -> String {
        if self.has_processes() {
            whereabouts.pid.to_string()
        } else {
            format!("{} {}", whereabouts.pid, whereabouts.thread)
        }
    }

    /// The names of the workers of a pool, as the operating system shows them: threads of this process, or other
    /// processes, called `prefix-` and a number. Dead ones that nobody has reaped are among them. `None` where the
    /// system does not tell.
    fn os_workers(&self, prefix: &str) -> Option<Vec<String>> {
        let (folder, own) = if self.has_processes() {
            ("/proc", std::process::id().to_string())
        } else {
            ("/proc/self/task", String::new())
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            if entry.file_name().to_str() == Some(&own) {
                continue;
            }
            // It may have ended between the two looks.
            let Ok(name) = std::fs::read_to_string(entry.path().join("comm")) else {
                continue;
            };
            let name = name.trim_end();
            let number = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
            if number.is_some_and(|number| number.parse::<u64>().is_ok()) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Some(names)
    }
}

/// A prefix for the names of workers that no other pool of this machine has; short enough to be shown in full.
#[must_use]
pub fn own_prefix() -> String {
    format!("t{:x}", std::process::id())
}

/// The number of cores, as pools count them.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[derive(Debug)]
struct Threads;

impl Fixture for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn try_build(&self, spec: Spec) -> Result<Pool, BuildError> {
        let mut builder = ThreadPool::builder();
        if let Some(workers) = spec.workers {
            builder = builder.workers(workers);
        }
        if let Some(tasks) = spec.backlog {
            builder = builder.backlog(tasks);
        }
        if let Some(prefix) = spec.name_prefix {
            builder = builder.name_prefix(prefix);
        }
        if let Some(Initializer { traces, failure }) = spec.initializer {
            builder = builder.initializer(move |_| {
                tasks::initialize(traces.clone(), failure.clone());
                Ok::<(), String>(())
            });
        }
        Ok(Arc::new(builder.build()?))
    }

    fn has_processes(&self) -> bool {
        false
    }

    fn default_workers(&self) -> usize {
        (cores() + 4).min(32)
    }
}

#[derive(Debug)]
struct Processes(&'static str, StartMethod);

impl Fixture for Processes {
    fn name(&self) -> &'static str {
        self.0
    }

    fn try_build(&self, spec: Spec) -> Result<Pool, BuildError> {
        let mut builder = ProcessPool::builder().start_method(self.1);
        if let Some(workers) = spec.workers {
            builder = builder.workers(workers);
        }
        if let Some(tasks) = spec.backlog {
            builder = builder.backlog(tasks);
        }
        if let Some(prefix) = spec.name_prefix {
            builder = builder.name_prefix(prefix);
        }
        if let Some(Initializer { traces, failure }) = spec.initializer {
            builder = builder.initializer(tasks::initialize { traces, failure });
        }
        Ok(Arc::new(builder.build()?))
    }

    fn has_processes(&self) -> bool {
        true
    }

    fn default_workers(&self) -> usize {
        cores()
    }
}
