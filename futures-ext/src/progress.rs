//! Progress bars on streams and iterators.
//!
//! Drawing is left to indicatif; this file decides what the line says, and sees to it that the bar ends when the stream
//! does, or is dropped.
//!
//! ```text
//! primes  75%|███████████████      | 3/4 [00:06<00:02, 2.0s/it, bad=1]
//! lines 1.2MB [00:03, 410.5kB/s]
//! ```

use std::borrow::Cow;
use std::fmt;
use std::iter::FusedIterator;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::{FusedStream, Stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Adds a progress bar to every stream.
///
/// # Examples
///
/// ```
/// use futures_ext::{Progress, ProgressExt, as_completed};
/// use futures_util::StreamExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let tasks = (0..100).map(|n| async move { n });
/// let mut done = as_completed(tasks).progress(Progress::new().description("counting"));
/// let mut sum = 0;
/// while let Some(n) = done.next().await {
///     sum += n;
///     done.bar().set_postfix(format!("sum={sum}"));
/// }
/// # }
/// ```
pub trait ProgressExt: Stream {
    /// Shows a progress bar that advances by one for each item.
    ///
    /// The bar appears now and ends with the stream, or when the stream is dropped.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressExt};
    /// use futures_util::{StreamExt, stream};
    ///
    /// let items = stream::iter([1, 2]).progress(Progress::new().hidden());
    /// assert_eq!(futures_ext::block_on(items.count()), 2);
    /// ```
    fn progress(self, progress: Progress) -> ProgressStream<Self>
    where
        Self: Sized,
    {
        ProgressStream::new(self, progress)
    }
}

impl<S: Stream + ?Sized> ProgressExt for S {}

/// Adds a progress bar to every iterator.
///
/// # Examples
///
/// ```
/// use futures_ext::{Progress, ProgressIteratorExt, as_completed};
///
/// let tasks = (0..100).map(|n| async move { n });
/// let sum: u64 = as_completed(tasks).blocking().progress(Progress::new()).sum();
/// assert_eq!(sum, 4950);
/// ```
pub trait ProgressIteratorExt: Iterator {
    /// Shows a progress bar that advances by one for each item.
    ///
    /// The bar appears now and ends with the iterator, or when the iterator is dropped.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// assert_eq!([1, 2].into_iter().progress(Progress::new().hidden()).count(), 2);
    /// ```
    fn progress(self, progress: Progress) -> ProgressIter<Self>
    where
        Self: Sized,
    {
        ProgressIter::new(self, progress)
    }
}

impl<I: Iterator + ?Sized> ProgressIteratorExt for I {}

/// What a progress bar looks like.
///
/// By default it is drawn on standard error, only if that is a terminal; it counts items (`it`), takes its total from the
/// stream's size hint if that is exact, and stays on the screen when it ends.
///
/// The line is drawn when something changes, at most 20 times a second; a clock that should tick while no items come
/// does not.
///
/// # Examples
///
/// ```
/// use futures_ext::{Progress, ProgressIteratorExt};
///
/// let progress = Progress::new().description("reading").total(6).unit("B").leave(false);
/// let lines = ["ab", "cdef"].into_iter().progress(progress).advance_by(|line| line.len() as u64);
/// assert_eq!(lines.count(), 2);
/// ```
#[must_use = "a progress bar is shown once it is given to a stream or an iterator"]
#[doc(alias = "tqdm")]
pub struct Progress {
    description: Cow<'static, str>,
    total: Option<u64>,
    unit: Cow<'static, str>,
    scaled: Option<bool>,
    postfix: Postfix,
    leave: bool,
    target: ProgressDrawTarget,
}

impl Progress {
    /// A bar with the defaults.
    pub fn new() -> Self {
        Self {
            description: "".into(),
            total: None,
            unit: "it".into(),
            scaled: None,
            postfix: Postfix::default(),
            leave: true,
            target: ProgressDrawTarget::stderr(),
        }
    }

    /// The text before the bar.
    ///
    /// ```
    /// let progress = futures_ext::Progress::new().description("primes");
    /// # drop(progress);
    /// ```
    pub fn description(mut self, description: impl Into<Cow<'static, str>>) -> Self {
        self.description = description.into();
        self
    }

    /// How many units there will be, where the size hint doesn't say so.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// let endless = (0..).progress(Progress::new().hidden().total(10));
    /// assert_eq!(endless.bar().total(), Some(10));
    /// ```
    pub fn total(mut self, total: u64) -> Self {
        self.total = Some(total);
        self
    }

    /// What is counted: `it` by default, `B` for bytes.
    ///
    /// ```
    /// let progress = futures_ext::Progress::new().unit("page");
    /// # drop(progress);
    /// ```
    pub fn unit(mut self, unit: impl Into<Cow<'static, str>>) -> Self {
        self.unit = unit.into();
        self
    }

    /// Whether large counts are written with k, M, G and T, in steps of 1,000. By default only those of bytes (`B`) are.
    ///
    /// ```
    /// let progress = futures_ext::Progress::new().unit("row").scaled(true); // 1.2M/3.0Mrow
    /// # drop(progress);
    /// ```
    pub fn scaled(mut self, scaled: bool) -> Self {
        self.scaled = Some(scaled);
        self
    }

    /// The text behind the figures; see also [`Bar::set_postfix`].
    ///
    /// ```
    /// let progress = futures_ext::Progress::new().postfix("warming up");
    /// # drop(progress);
    /// ```
    pub fn postfix(mut self, postfix: impl Into<Cow<'static, str>>) -> Self {
        self.postfix = Postfix::Text(postfix.into());
        self
    }

    /// Asks for the text behind the figures each time the bar is drawn.
    ///
    /// The closure must not use the [`Bar`] itself: it is called while the bar is locked.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use futures_ext::Progress;
    ///
    /// let failed = Arc::new(AtomicU64::new(0));
    /// let shown = Arc::clone(&failed);
    /// let progress = Progress::new().postfix_with(move || format!("failed={}", shown.load(Ordering::Relaxed)));
    /// # drop(progress);
    /// ```
    pub fn postfix_with(mut self, postfix: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.postfix = Postfix::Ask(Arc::new(postfix));
        self
    }

    /// Whether the bar stays on the screen when it ends: true by default.
    ///
    /// ```
    /// let progress = futures_ext::Progress::new().leave(false);
    /// # drop(progress);
    /// ```
    pub fn leave(mut self, leave: bool) -> Self {
        self.leave = leave;
        self
    }

    /// Shows nothing, but counts all the same.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// let mut items = [1].into_iter().progress(Progress::new().hidden());
    /// items.next();
    /// assert_eq!(items.bar().position(), 1);
    /// ```
    pub fn hidden(self) -> Self {
        self.draw_target(ProgressDrawTarget::hidden())
    }

    /// Where the bar is drawn: standard error by default.
    ///
    /// ```
    /// use indicatif::ProgressDrawTarget;
    ///
    /// let progress = futures_ext::Progress::new().draw_target(ProgressDrawTarget::stdout());
    /// # drop(progress);
    /// ```
    pub fn draw_target(mut self, target: ProgressDrawTarget) -> Self {
        self.target = target;
        self
    }

    /// Takes `total` unless one was set.
    pub(crate) fn total_or(mut self, total: usize) -> Self {
        self.total.get_or_insert(total as u64);
        self
    }

    fn total_from_hint(self, hint: (usize, Option<usize>)) -> Self {
        match hint {
            (lower, Some(upper)) if lower == upper => self.total_or(lower),
            _ => self,
        }
    }

    fn start(self) -> Running {
        let postfix = Arc::new(Mutex::new(self.postfix));
        let scaled = self.scaled.unwrap_or(self.unit == "B");
        let template = match self.total {
            Some(_) => "{prefix}{part}%|{wide_bar}| {count}/{whole} [{clock}<{left}, {rate}{postfix}]",
            None => "{prefix}{count} [{clock}, {rate}{postfix}]",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let unit = || self.unit.clone().into_owned();
        let count_unit = if scaled || self.total.is_none() { unit() } else { String::new() };
        let style = style
            .progress_chars("█▉▊▋▌▍▎▏ ")
            .with_key("count", {
                let unit = if self.total.is_none() { count_unit.clone() } else { String::new() };
                move |state: &ProgressState, out: &mut dyn fmt::Write| {
                    let _ = write!(out, "{}{unit}", Amount(state.pos() as f64, scaled));
                }
            })
            .with_key("whole", move |state: &ProgressState, out: &mut dyn fmt::Write| {
                let _ = write!(out, "{}{count_unit}", Amount(state.len().unwrap_or(0) as f64, scaled));
            })
            // Rounded down: not 100 before the end.
            .with_key("part", |state: &ProgressState, out: &mut dyn fmt::Write| {
                let (done, whole) = (u128::from(state.pos()), u128::from(state.len().unwrap_or(0)));
                let _ = write!(out, "{:>3}", (done * 100).checked_div(whole).unwrap_or(100).min(100));
            })
            .with_key("clock", |state: &ProgressState, out: &mut dyn fmt::Write| {
                let _ = write!(out, "{}", Clock(state.elapsed()));
            })
            .with_key("left", |state: &ProgressState, out: &mut dyn fmt::Write| {
                let _ = match state.pos() {
                    0 => write!(out, "?"),
                    _ => write!(out, "{}", Clock(state.eta())),
                };
            })
            .with_key("rate", {
                let unit = unit();
                move |state: &ProgressState, out: &mut dyn fmt::Write| {
                    let _ = write!(out, "{}", Rate { per_second: state.per_sec(), unit: &unit, scaled });
                }
            })
            .with_key("postfix", {
                let postfix = Arc::clone(&postfix);
                move |_: &ProgressState, out: &mut dyn fmt::Write| {
                    // Taken out first, so that the closure runs without the lock.
                    let postfix = lock(&postfix).clone();
                    let text = match postfix {
                        Postfix::Text(text) => text,
                        Postfix::Ask(ask) => ask().into(),
                    };
                    if !text.is_empty() {
                        let _ = write!(out, ", {text}");
                    }
                }
            });
        let bar = Bar { bar: ProgressBar::with_draw_target(self.total, self.target).with_style(style), postfix };
        bar.set_description(self.description);
        Running { bar, leave: self.leave, ended: false }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("description", &self.description)
            .field("total", &self.total)
            .field("unit", &self.unit)
            .field("postfix", &self.postfix)
            .field("leave", &self.leave)
            .field("hidden", &self.target.is_hidden())
            .finish_non_exhaustive()
    }
}

/// A handle on a progress bar that is being shown. Clones share the bar.
///
/// It does not keep the bar alive: the bar ends with its stream or iterator.
///
/// # Examples
///
/// ```
/// use futures_ext::{Progress, ProgressIteratorExt};
///
/// let mut numbers = [1, 2].into_iter().progress(Progress::new().hidden());
/// let bar = numbers.bar().clone();
/// while let Some(n) = numbers.next() {
///     bar.set_postfix(format!("last={n}"));
/// }
/// assert_eq!((bar.position(), bar.total()), (2, Some(2)));
/// ```
#[derive(Clone)]
pub struct Bar {
    bar: ProgressBar,
    postfix: Arc<Mutex<Postfix>>,
}

impl Bar {
    /// Sets the text behind the figures, in place of the builder's; empty for none. Does nothing once the bar has ended.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// let items = [1, 2].into_iter().progress(Progress::new().hidden());
    /// items.bar().set_postfix("failed=3");
    /// ```
    pub fn set_postfix(&self, postfix: impl Into<Cow<'static, str>>) {
        if self.is_finished() {
            return;
        }
        *lock(&self.postfix) = Postfix::Text(postfix.into());
        self.bar.tick();
    }

    /// Sets the text before the bar; empty for none. Does nothing once the bar has ended.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// let items = [1, 2].into_iter().progress(Progress::new().hidden());
    /// items.bar().set_description("second pass");
    /// ```
    pub fn set_description(&self, description: impl Into<Cow<'static, str>>) {
        if self.is_finished() {
            return;
        }
        let description = description.into();
        let spaced = if description.is_empty() { description } else { format!("{description} ").into() };
        self.bar.set_prefix(spaced); // draws, too
    }

    /// Runs `code` with the bar out of the way: for output to the same terminal, such as results on standard output.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// let items = [1, 2].into_iter().progress(Progress::new());
    /// items.bar().suspend(|| println!("7 is prime"));
    /// ```
    pub fn suspend<R>(&self, code: impl FnOnce() -> R) -> R {
        self.bar.suspend(code)
    }

    /// Writes a line above the bar; to standard error, if the bar is hidden.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// let items = [1, 2].into_iter().progress(Progress::new().hidden());
    /// items.bar().println("7 is prime");
    /// ```
    pub fn println(&self, line: impl AsRef<str>) {
        if self.bar.is_hidden() {
            eprintln!("{}", line.as_ref());
        } else {
            self.bar.println(line);
        }
    }

    /// How many units have been counted.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// let items = [1, 2].into_iter().progress(Progress::new().hidden());
    /// assert_eq!(items.bar().position(), 0);
    /// ```
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// How many units there will be, if that is known.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// let items = [1, 2].into_iter().progress(Progress::new().hidden());
    /// assert_eq!(items.bar().total(), Some(2));
    /// ```
    pub fn total(&self) -> Option<u64> {
        self.bar.length()
    }

    /// Whether the bar has ended: its stream or iterator has, or was dropped.
    ///
    /// ```
    /// use futures_ext::{Progress, ProgressIteratorExt};
    ///
    /// let items = [1, 2].into_iter().progress(Progress::new().hidden());
    /// let bar = items.bar().clone();
    /// drop(items);
    /// assert!(bar.is_finished());
    /// ```
    pub fn is_finished(&self) -> bool {
        self.bar.is_finished()
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bar")
            .field("position", &self.position())
            .field("total", &self.total())
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// The stream made by [`ProgressExt::progress`].
#[must_use = "a stream does nothing until it is polled"]
#[pin_project::pin_project]
pub struct ProgressStream<S: Stream> {
    #[pin]
    stream: S,
    running: Running,
    advance: Option<Advance<S::Item>>,
}

impl<S: Stream> ProgressStream<S> {
    pub(crate) fn new(stream: S, progress: Progress) -> Self {
        let running = progress.total_from_hint(stream.size_hint()).start();
        Self { stream, running, advance: None }
    }

    /// Advances the bar by what `advance` says of an item, instead of by one: its bytes, for instance.
    pub fn advance_by(mut self, advance: impl FnMut(&S::Item) -> u64 + Send + 'static) -> Self {
        self.advance = Some(Box::new(advance));
        self
    }

    /// The handle on the bar.
    pub fn bar(&self) -> &Bar {
        &self.running.bar
    }

    /// The stream inside.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream inside, to change it.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The stream, without the bar, which ends.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: Stream> Stream for ProgressStream<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.project();
        let item = ready!(this.stream.poll_next(cx));
        this.running.count(item.as_ref(), this.advance);
        Poll::Ready(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.size_hint()
    }
}

impl<S: FusedStream> FusedStream for ProgressStream<S> {
    fn is_terminated(&self) -> bool {
        self.stream.is_terminated()
    }
}

impl<S: Stream + fmt::Debug> fmt::Debug for ProgressStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressStream").field("stream", &self.stream).field("bar", self.bar()).finish_non_exhaustive()
    }
}

/// The iterator made by [`ProgressIteratorExt::progress`].
#[must_use = "an iterator does nothing until it is advanced"]
pub struct ProgressIter<I: Iterator> {
    iter: I,
    running: Running,
    advance: Option<Advance<I::Item>>,
}

impl<I: Iterator> ProgressIter<I> {
    pub(crate) fn new(iter: I, progress: Progress) -> Self {
        let running = progress.total_from_hint(iter.size_hint()).start();
        Self { iter, running, advance: None }
    }

    /// Advances the bar by what `advance` says of an item, instead of by one: its bytes, for instance.
    pub fn advance_by(mut self, advance: impl FnMut(&I::Item) -> u64 + Send + 'static) -> Self {
        self.advance = Some(Box::new(advance));
        self
    }

    /// The handle on the bar.
    pub fn bar(&self) -> &Bar {
        &self.running.bar
    }

    /// The iterator inside.
    pub fn get_ref(&self) -> &I {
        &self.iter
    }

    /// The iterator inside, to change it.
    pub fn get_mut(&mut self) -> &mut I {
        &mut self.iter
    }

    /// The iterator, without the bar, which ends.
    pub fn into_inner(self) -> I {
        self.iter
    }
}

impl<I: Iterator> Iterator for ProgressIter<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        let item = self.iter.next();
        self.running.count(item.as_ref(), &mut self.advance);
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.iter.size_hint()
    }
}

impl<I: ExactSizeIterator> ExactSizeIterator for ProgressIter<I> {}
impl<I: FusedIterator> FusedIterator for ProgressIter<I> {}

impl<I: Iterator + fmt::Debug> fmt::Debug for ProgressIter<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressIter").field("iter", &self.iter).field("bar", self.bar()).finish_non_exhaustive()
    }
}

type Advance<T> = Box<dyn FnMut(&T) -> u64 + Send>;

/// A bar on the screen, which ends once: with its stream, or on drop.
struct Running {
    bar: Bar,
    leave: bool,
    ended: bool,
}

impl Running {
    fn count<T>(&mut self, item: Option<&T>, advance: &mut Option<Advance<T>>) {
        match item {
            Some(item) => self.bar.bar.inc(advance.as_mut().map_or(1, |advance| advance(item))),
            None => self.end(),
        }
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // Not `finish`, which would claim the total: a stream that was dropped half-way has not done all of it.
        if self.leave {
            self.bar.bar.abandon();
        } else {
            self.bar.bar.finish_and_clear();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

#[derive(Clone)]
enum Postfix {
    Text(Cow<'static, str>),
    Ask(Arc<dyn Fn() -> String + Send + Sync>),
}

impl Default for Postfix {
    fn default() -> Self {
        Self::Text("".into())
    }
}

impl fmt::Debug for Postfix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => text.fmt(f),
            Self::Ask(_) => f.write_str("<closure>"),
        }
    }
}

/// Nothing that can panic runs under this lock.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number, with k, M, G or T if it is to be scaled.
struct Amount(f64, bool);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(mut number, scaled) = *self;
        if !scaled {
            return if number.fract() == 0.0 { write!(f, "{number:.0}") } else { write!(f, "{number:.1}") };
        }
        let mut prefixes = ["", "k", "M", "G", "T"].iter();
        let mut prefix = prefixes.next().unwrap_or(&"");
        // 999.95 and more would round to 1000.0
        while number >= 999.95 {
            let Some(next) = prefixes.next() else { break };
            prefix = next;
            number /= 1000.0;
        }
        let digits = usize::from(!prefix.is_empty() || number.fract() != 0.0);
        write!(f, "{number:.digits$}{prefix}")
    }
}

/// Units per second; seconds per unit when it is slow.
struct Rate<'a> {
    per_second: f64,
    unit: &'a str,
    scaled: bool,
}

impl fmt::Display for Rate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { per_second, unit, scaled } = *self;
        if per_second <= 0.0 || !per_second.is_finite() {
            write!(f, "?{unit}/s")
        } else if per_second < 1.0 {
            write!(f, "{:.1}s/{unit}", 1.0 / per_second)
        } else {
            write!(f, "{}{unit}/s", Amount((per_second * 10.0).round() / 10.0, scaled))
        }
    }
}

/// `mm:ss`, with hours in front if there are any.
struct Clock(Duration);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 {
            write!(f, "{hours}:")?;
        }
        write!(f, "{minutes:02}:{seconds:02}")
    }
}
