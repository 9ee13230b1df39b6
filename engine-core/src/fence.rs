//! Calls into code that is not the engine's: token constraints, wakers, progress reports. A panic
//! there is the trouble of the request that brought the code along, and of no other.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs foreign code.
///
/// # Errors
///
/// What the code panicked with, in words.
pub(crate) fn fence<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = message(panic.as_ref());
        // What a panic carries is foreign too, and may panic when it is dropped.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(again);
        }
        text
    })
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// A value that runs foreign code when it is dropped.
pub(crate) struct Fenced<T>(Option<T>);

impl<T> Fenced<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value, to be changed.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_mut()
    }

    /// The value, fenced no more. Later there is none.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.0.take()
    }
}

impl<T> Drop for Fenced<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        if let Err(reason) = fence(|| drop(value)) {
            tracing::warn!(reason, "code of a request panicked while it was dropped");
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Fenced<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    #[test]
    fn panics_are_errors_whatever_they_carry() {
        assert_eq!(fence(|| 1), Ok(1));
        assert_eq!(fence::<()>(|| panic!("words")), Err("words".to_owned()));
        assert_eq!(fence::<()>(|| panic!("{}", 7)), Err("7".to_owned()));
        let error = fence::<()>(|| std::panic::panic_any(Bomb)).unwrap_err();
        assert_eq!(error, "a panic without a message");
    }

    #[test]
    fn a_fenced_value_may_panic_when_it_is_dropped() {
        drop(Fenced::new(Bomb));
    }
}
