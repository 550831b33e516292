//! The options of one task.

use std::borrow::Cow;
use std::time::{Duration, Instant};

/// Which of the waiting tasks goes first. Within one priority, the order is that of submission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// After everything else.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before everything else.
    High,
}

impl Priority {
    pub(crate) const COUNT: usize = 3;

    /// The lane of this priority, 0 first.
    pub(crate) fn lane(self) -> usize {
        match self {
            Priority::High => 0,
            Priority::Normal => 1,
            Priority::Low => 2,
        }
    }
}

/// How one task is to be run: for [`submit_with`](crate::ExecutorExt::submit_with).
///
/// ```
/// use std::time::Duration;
/// use polypool::{Priority, TaskOptions};
///
/// let options = TaskOptions::new()
///     .name("thumbnail 17")
///     .timeout(Duration::from_secs(1))
///     .retries(2)
///     .priority(Priority::High);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "options do nothing until they are given to submit_with"]
pub struct TaskOptions {
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) retries: u32,
    pub(crate) priority: Priority,
}

impl TaskOptions {
    /// No name of its own, no timeout, no deadline, no retries, normal priority.
    pub fn new() -> Self {
        Self::default()
    }

    /// The name in errors, in `Debug` and in `context().name()`; by default the name of the task.
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How long the task may *run* (`None`: for ever); waiting in the backlog does not count. After that it is stopped as by `cancel()`,
    /// and its outcome is [`TaskError::TimedOut`](crate::TaskError::TimedOut).
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// The instant by which the task must have ended, waiting included (`None`: there is none). After that it is stopped as by `cancel()`,
    /// and its outcome is [`TaskError::DeadlineExceeded`](crate::TaskError::DeadlineExceeded).
    pub fn deadline(mut self, deadline: impl Into<Option<Instant>>) -> Self {
        self.deadline = deadline.into();
        self
    }

    /// How often the task is run *again* after its worker died, after a panic and after its timeout (not after its
    /// deadline, a cancellation, or an error of the codec). It must be fit to run twice. Executors keep the encoded
    /// arguments for this, so they must be encodable even on threads.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Which of the waiting tasks goes first.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Whether nothing differs from the defaults, so that nothing needs to be kept.
    pub(crate) fn is_default(&self) -> bool {
        self.name.is_none()
            && self.timeout.is_none()
            && self.deadline.is_none()
            && self.retries == 0
            && self.priority == Priority::Normal
    }
}
