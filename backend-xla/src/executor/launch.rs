//! One execution on all devices: arguments by array, results by array.

use backend_api::BackendError;

use crate::{
    load::Sharded,
    pjrt::{
        Argument, Buffer, Client, Completion, ElementType, Execution, LoadedExecutable, PjrtError,
    },
};

/// Why a launch could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error(transparent)]
    Pjrt(#[from] PjrtError),
    #[error(transparent)]
    Compile(#[from] BackendError),
    #[error("a module returned too few arrays")]
    Outputs,
}

/// The arguments of an execution, array by array.
pub(super) struct Arguments<'a> {
    /// By device.
    lists: Vec<Vec<Argument<'a>>>,
}

impl<'a> Arguments<'a> {
    pub(super) fn new(devices: usize) -> Self {
        Self { lists: (0..devices).map(|_| Vec::new()).collect() }
    }

    pub(super) fn borrow(&mut self, array: &'a Sharded) {
        for (list, shard) in self.lists.iter_mut().zip(array) {
            list.push(Argument::Borrow(shard));
        }
    }

    pub(super) fn donate(&mut self, array: Sharded) {
        for (list, shard) in self.lists.iter_mut().zip(array) {
            list.push(Argument::Donate(shard));
        }
    }
}

/// What an execution gives.
pub(super) struct Outcome {
    /// The results, array by array.
    pub(super) arrays: Vec<Sharded>,
    /// Completes when the first device has run. The others run the same program, and what they
    /// exchange keeps them together.
    pub(super) done: Completion,
}

impl Outcome {
    /// The only result.
    pub(super) fn only(self) -> Result<Sharded, LaunchError> {
        self.arrays.into_iter().next().ok_or(LaunchError::Outputs)
    }
}

/// Starts an execution.
pub(super) fn run(
    executable: &LoadedExecutable,
    arguments: Arguments<'_>,
) -> Result<Outcome, PjrtError> {
    let Execution { outputs, done } = executable.execute(arguments.lists)?;
    let mut arrays: Vec<Sharded> = (0..executable.outputs()).map(|_| Sharded::new()).collect();
    for device in outputs {
        for (array, shard) in arrays.iter_mut().zip(device) {
            array.push(shard);
        }
    }
    let event = match done.into_iter().next() {
        Some(event) => Ok(event),
        None => {
            let first = arrays.first().and_then(|array| array.first());
            first.map_or(
                Err(PjrtError::Missing { function: "device_complete_events" }),
                Buffer::ready,
            )
        }
    }?;
    Ok(Outcome { arrays, done: event.completion("a step")? })
}

/// Puts the same `i32` array on every device.
pub(super) fn upload(
    client: &Client,
    devices: usize,
    dims: &[i64],
    bytes: &[u8],
) -> Result<Sharded, PjrtError> {
    upload_as(client, devices, ElementType::I32, dims, bytes)
}

/// Puts the same array on every device.
pub(super) fn upload_as(
    client: &Client,
    devices: usize,
    element: ElementType,
    dims: &[i64],
    bytes: &[u8],
) -> Result<Sharded, PjrtError> {
    (0..devices).map(|index| client.to_device(index, element, dims, bytes)).collect()
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn floats(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|float| float.to_le_bytes()).collect()
}
