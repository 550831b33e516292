//! Progress bars, read from a terminal in memory.

mod common;

use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_ext::{Progress, ProgressExt, ProgressIteratorExt, as_completed, block_on};
use futures_util::{StreamExt, stream};
use indicatif::{InMemoryTerm, ProgressDrawTarget};

fn terminal() -> (InMemoryTerm, Progress) {
    let terminal = InMemoryTerm::new(10, 100);
    // No rate limit worth speaking of: each change is drawn.
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.clone()), 255);
    (terminal, Progress::new().draw_target(target))
}

#[test]
fn total_comes_from_an_exact_size_hint_and_the_end_is_100_percent() {
    let (terminal, progress) = terminal();
    let mut done = as_completed((0..4).map(ready)).progress(progress.description("primes"));
    assert_eq!(done.bar().total(), Some(4));
    assert!(terminal.contents().contains("0/4"), "there before the first item: {}", terminal.contents());
    assert_eq!(block_on(done.next()), Some(0));
    assert_eq!(done.bar().position(), 1);
    block_on(async { while done.next().await.is_some() {} });
    let line = terminal.contents();
    assert!(line.starts_with("primes 100%|█"), "{line}");
    assert!(line.contains("| 4/4 [00:00<00:00, "), "{line}");
    assert!(line.contains("it/s"), "{line}");
    assert!(done.bar().is_finished());
}

#[test]
fn unknown_total_shows_the_count() {
    let (terminal, progress) = terminal();
    let items = stream::iter(0..10).filter(|n| ready(n % 2 == 0));
    let count = block_on(items.progress(progress).count());
    assert_eq!(count, 5);
    let line = terminal.contents();
    assert!(line.starts_with("5it [00:00, "), "{line}");
}

#[test]
fn given_total_wins_over_the_hint() {
    let (terminal, progress) = terminal();
    let mut items = [1, 2].into_iter().progress(progress.total(8));
    items.by_ref().for_each(drop);
    let line = terminal.contents();
    assert!(line.contains(" 25%|") && line.contains("| 2/8 ["), "{line}");
}

#[test]
fn bytes_are_scaled() {
    let (terminal, progress) = terminal();
    let chunks = [1_500_u64, 500, 1_000_000].into_iter();
    let mut chunks = chunks.progress(progress.unit("B").total(2_500_000)).advance_by(|bytes| *bytes);
    chunks.by_ref().for_each(drop);
    assert_eq!(chunks.bar().position(), 1_002_000);
    let line = terminal.contents();
    assert!(line.contains("| 1.0M/2.5MB ["), "{line}");
    assert!(line.contains("B/s"), "{line}");
}

#[test]
fn scaling_can_be_asked_for() {
    let (terminal, progress) = terminal();
    (0..1_500).progress(progress.scaled(true)).for_each(drop);
    let line = terminal.contents();
    assert!(line.contains("| 1.5k/1.5kit ["), "{line}");
}

#[test]
fn postfix_and_description_can_be_changed_on_the_way() {
    let (terminal, progress) = terminal();
    let mut items = [1, 2].into_iter().progress(progress.postfix("early").description("one"));
    let line = terminal.contents();
    assert!(line.starts_with("one ") && line.ends_with(", early]"), "{line}");
    items.next();
    let bar = items.bar().clone();
    bar.set_postfix("bad=1");
    bar.set_description("two");
    while items.next().is_some() {}
    let line = terminal.contents();
    assert!(line.starts_with("two 100%") && line.ends_with(", bad=1]"), "{line}");
}

#[test]
fn postfix_closure_is_asked_when_drawing() {
    let (terminal, progress) = terminal();
    let failed = Arc::new(AtomicU64::new(0));
    let shown = Arc::clone(&failed);
    let items = (0..3).progress(progress.postfix_with(move || format!("failed={}", shown.load(Ordering::SeqCst))));
    items.for_each(|_| {
        failed.fetch_add(1, Ordering::SeqCst);
    });
    let line = terminal.contents();
    assert!(line.ends_with(", failed=3]"), "{line}");
}

#[test]
fn lines_appear_above_the_bar() {
    let (terminal, progress) = terminal();
    let mut items = [1, 2].into_iter().progress(progress);
    items.next();
    items.bar().println("a word");
    while items.next().is_some() {}
    let screen = terminal.contents();
    let (above, bar) = screen.split_once('\n').unwrap();
    assert_eq!(above, "a word");
    assert!(bar.starts_with("100%|"), "{bar}");
}

#[test]
fn bar_that_is_not_left_is_cleared_and_stays_so() {
    let (terminal, progress) = terminal();
    let mut items = [1].into_iter().progress(progress.leave(false));
    items.next();
    assert_ne!(terminal.contents(), "");
    assert_eq!(items.next(), None);
    assert_eq!(terminal.contents(), "");
    items.bar().set_postfix("late");
    items.bar().set_description("late");
    assert_eq!(terminal.contents(), "");
}

/// The line may have scrolled away by then, and would be drawn a second time.
#[test]
fn bar_that_was_left_is_not_drawn_again() {
    let (terminal, progress) = terminal();
    let mut items = [1].into_iter().progress(progress);
    items.by_ref().for_each(drop);
    let left = terminal.contents();
    items.bar().set_postfix("late");
    items.bar().set_description("late");
    assert_eq!(terminal.contents(), left);
}

/// Dropped half-way: the bar ends where it was, and does not claim the total.
#[test]
fn dropping_ends_the_bar() {
    let (screen, progress) = terminal();
    let mut items = stream::iter(0..4).progress(progress);
    assert_eq!(block_on(items.next()), Some(0));
    let bar = items.bar().clone();
    drop(items);
    assert!(bar.is_finished());
    let line = screen.contents();
    assert!(line.starts_with(" 25%|") && line.contains("| 1/4 ["), "{line}");

    let (terminal, progress) = terminal();
    drop(stream::iter(0..4).progress(progress.leave(false)));
    assert_eq!(terminal.contents(), "");
}

#[test]
fn timeout_counts_futures_and_does_not_count_the_error() {
    let futures = || [ready(1).left_future(), ready(2).left_future(), pending().right_future()];
    use futures_util::FutureExt as _;
    let (screen, progress) = terminal();
    let items = as_completed(futures()).timeout(Duration::ZERO).progress(progress);
    assert_eq!(items.bar().total(), Some(3));
    assert_eq!(block_on(items.count()), 3);
    assert!(screen.contents().contains(" 66%|"), "{}", screen.contents());
    assert!(screen.contents().contains("| 2/3 ["), "{}", screen.contents());

    let (screen, progress) = terminal();
    assert_eq!(as_completed(futures()).timeout(Duration::ZERO).blocking().progress(progress).count(), 3);
    assert!(screen.contents().contains("| 2/3 ["), "{}", screen.contents());
}

#[test]
fn hidden_bar_counts_all_the_same() {
    let mut items = [1, 2].into_iter().progress(Progress::new().hidden());
    items.by_ref().for_each(drop);
    assert_eq!((items.bar().position(), items.bar().total()), (2, Some(2)));
    assert!(format!("{:?}", items.bar()).starts_with("Bar { position: 2, total: Some(2), finished: true"));
}
