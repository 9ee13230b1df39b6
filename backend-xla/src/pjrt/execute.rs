//! Execution: asynchronous, on all devices of a program, with donation by move.

use std::ptr;

use super::{
    Buffer, Event, LoadedExecutable, PjrtError,
    plugin::{arguments, call},
    sys,
};

/// An argument of an execution.
#[derive(Debug)]
pub enum Argument<'a> {
    /// Read, and still there afterwards. It is not donated even if the program offers to alias
    /// it: the plugin copies it then.
    Borrow(&'a Buffer),
    /// Given away: where the program aliases it with a result, the result takes over its memory.
    /// It is gone after the call, also if the call fails.
    Donate(Buffer),
}

/// An execution under way.
#[derive(Debug)]
pub struct Execution {
    /// The results, by device and then by index. They may be passed on before they are ready.
    pub outputs: Vec<Vec<Buffer>>,
    /// For each device, an event that completes when its part has run.
    pub done: Vec<Event>,
}

impl LoadedExecutable {
    /// Starts the program on all its devices and returns before they are done.
    ///
    /// `arguments` holds one list for each device; the same arguments are donated in all.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Arguments`] for lists that don't match, before anything is started;
    /// [`PjrtError::Call`] if the execution can't be started. What goes wrong later comes out of
    /// the events and outputs.
    pub fn execute(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<Execution, PjrtError> {
        let borrowed = self.check_arguments(&arguments)?;
        let count = arguments.first().map_or(0, Vec::len);
        let lists: Vec<Vec<*mut sys::PJRT_Buffer>> = arguments
            .iter()
            .map(|list| {
                let raw = |argument: &Argument<'_>| match argument {
                    Argument::Borrow(buffer) => buffer.raw(),
                    Argument::Donate(buffer) => buffer.raw(),
                };
                list.iter().map(raw).collect()
            })
            .collect();
        let list_pointers: Vec<_> = lists.iter().map(|list| list.as_ptr()).collect();
        let mut outputs = vec![vec![ptr::null_mut(); self.outputs()]; lists.len()];
        let output_pointers: Vec<_> = outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut events = vec![ptr::null_mut(); lists.len()];

        let mut options = arguments!(PJRT_ExecuteOptions {
            non_donatable_input_indices: borrowed.as_ptr(),
            num_non_donatable_input_indices: borrowed.len(),
        });
        let mut execute = arguments!(PJRT_LoadedExecutable_Execute_Args {
            executable: self.raw(),
            options: &mut options,
            argument_lists: list_pointers.as_ptr(),
            num_devices: lists.len(),
            num_args: count,
            output_lists: output_pointers.as_ptr(),
            device_complete_events: events.as_mut_ptr(),
        });
        let client = self.client();
        // SAFETY: every list outlives the call and has the length that it is given with; the
        // buffers in `arguments` are alive until its end. What is returned is ours.
        unsafe {
            call!(client.plugin(), PJRT_LoadedExecutable_Execute, execute)?;
            let own = |list: Vec<*mut sys::PJRT_Buffer>| {
                list.into_iter().map(|raw| Buffer::from_raw(client, raw)).collect()
            };
            Ok(Execution {
                outputs: outputs.into_iter().map(own).collect(),
                done: events
                    .into_iter()
                    .filter(|event| !event.is_null())
                    .map(|event| Event::from_raw(client.plugin(), event))
                    .collect(),
            })
        }
    }

    /// Checks that the lists fit the executable and each other, and returns the indices of the
    /// arguments that must not be donated.
    fn check_arguments(&self, arguments: &[Vec<Argument<'_>>]) -> Result<Vec<i64>, PjrtError> {
        let borrowed = |list: &[Argument<'_>]| -> Vec<i64> {
            let is_borrowed = |(index, argument): (usize, &Argument<'_>)| {
                matches!(argument, Argument::Borrow(_)).then_some(index as i64)
            };
            list.iter().enumerate().filter_map(is_borrowed).collect()
        };
        let devices = self.partitions();
        let mismatch = |list| PjrtError::Arguments { devices, list };
        let (first, rest) = arguments.split_first().ok_or(mismatch(0))?;
        if arguments.len() != devices {
            return Err(mismatch(arguments.len().min(devices)));
        }
        let expected = borrowed(first);
        for (index, list) in rest.iter().enumerate() {
            if list.len() != first.len() || borrowed(list) != expected {
                return Err(mismatch(index + 1));
            }
        }
        Ok(expected)
    }
}
