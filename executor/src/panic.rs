//! Catching a panic of user code with its message and place.
//!
//! The place of a panic is known only to the panic hook. So the first pool installs one that notes the place for the
//! thread it is on and then calls the hook that was there before: what a panic prints stays what the program chose.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use crate::error::{PanicLocation, PanicReport};

thread_local! {
    /// The place of this thread's newest panic.
    static PLACE: RefCell<Option<PanicLocation>> = const { RefCell::new(None) };
}

/// Installs the hook that notes places; does so once in a process.
pub(crate) fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            let place = info.location().map(|at| PanicLocation {
                file: at.file().to_owned(),
                line: at.line(),
                column: at.column(),
            });
            // A thread that is ending has no thread-locals left; then the place is lost, not the program.
            let _ = PLACE.try_with(|slot| {
                if let Ok(mut slot) = slot.try_borrow_mut() {
                    *slot = place;
                }
            });
            previous(info);
        }));
    });
}

/// Calls user code; a panic becomes a report.
///
/// The value is not looked at again after a panic, which is why unwind safety is asserted here once.
pub(crate) fn catch<R>(code: impl FnOnce() -> R) -> Result<R, PanicReport> {
    catch_unwind(AssertUnwindSafe(code)).map_err(report)
}

/// Makes a report of a caught payload, on the thread that caught it.
pub(crate) fn report(payload: Box<dyn Any + Send>) -> PanicReport {
    let location = PLACE.with(|slot| slot.borrow_mut().take());
    let message = if let Some(text) = payload.downcast_ref::<&'static str>() {
        Some((*text).to_owned())
    } else {
        payload.downcast_ref::<String>().cloned()
    };
    // A payload may have a `Drop` that panics as well; that must not reach the worker.
    let _ = catch_unwind(AssertUnwindSafe(move || drop(payload)));
    PanicReport { message, location }
}
