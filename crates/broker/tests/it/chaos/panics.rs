//! Panics of tasks: tokio keeps them to itself, and here they are a fault.

use std::{cell::Cell, panic, sync::Once};

thread_local! {
    /// All of a simulation is one thread.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Counts from here on, on this thread.
pub(super) fn count() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
    PANICS.set(0);
}

/// How many there were since [`count`].
pub(super) fn counted() -> usize {
    PANICS.get()
}
