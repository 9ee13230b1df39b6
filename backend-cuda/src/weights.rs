//! How each weight of a program lies on the device, by what reads it.

use backend_api::BackendError;
use backend_api::program::{Op, Program, WeightId};
use backend_api::weights::Tensor;
use bytemuck::cast_slice;

use crate::BlockLayout;
use crate::device::Device;
use crate::load::{BACKEND, narrow};

/// What a weight is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Use {
    /// 16-bit numbers.
    Narrow,
    /// f32.
    Wide,
    /// A matrix that is multiplied or looked up: in blocks if it is quantized, otherwise 16-bit numbers.
    Matrix,
    /// The matrices of experts: chunks of blocks, or of 16-bit numbers.
    Stack,
}

/// A weight on the device.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) address: u64,
    /// For a weight in chunks.
    pub(crate) blocks: Option<BlockLayout>,
    /// As the program that brought it says.
    pub(crate) shape: Vec<usize>,
}

impl Use {
    /// The use of each weight.
    ///
    /// # Errors
    ///
    /// A weight that two operations read in ways that no memory has both of.
    pub(crate) fn of_program(program: &Program) -> Result<Vec<Self>, BackendError> {
        let mut uses = vec![None; program.weights().len()];
        let mut read = |weight: WeightId, new: Self| {
            let known = &mut uses[weight.index()];
            *known = Some(match (*known, new) {
                (None, new) => new,
                (Some(known), new) if known == new => known,
                (Some(Self::Narrow), Self::Matrix) | (Some(Self::Matrix), Self::Narrow) => {
                    Self::Narrow
                }
                _ => {
                    let name = &program.weights()[weight.index()].name;
                    let what = format!("`{name}` read in two ways");
                    return Err(BackendError::Unsupported { backend: BACKEND, what });
                }
            });
            Ok(())
        };
        for op in program.ops() {
            match op {
                Op::Embed { weight, .. } | Op::Logits { weight, .. } => {
                    read(*weight, Self::Matrix)?
                }
                Op::Linear { weight, bias, .. } => {
                    read(*weight, Self::Matrix)?;
                    bias.map_or(Ok(()), |bias| read(bias, Self::Narrow))?;
                }
                Op::MixtureOfExperts(experts) => {
                    for layer in [experts.gate, experts.up, experts.down] {
                        read(layer.weight, Self::Stack)?;
                        layer.bias.map_or(Ok(()), |bias| read(bias, Self::Narrow))?;
                    }
                    let routing = &experts.routing;
                    for weight in [routing.selection_bias, routing.scales].into_iter().flatten() {
                        read(weight, Self::Wide)?;
                    }
                }
                Op::RmsNorm { weight, .. } => {
                    weight.map_or(Ok(()), |weight| read(weight, Self::Narrow))?;
                }
                Op::Multiply { weight, .. } => read(*weight, Self::Narrow)?,
                Op::Attention(attention) => {
                    attention.sinks.map_or(Ok(()), |sinks| read(sinks, Self::Narrow))?;
                }
                Op::Rope { .. }
                | Op::GatedActivation { .. }
                | Op::Add { .. }
                | Op::Scale { .. }
                | Op::SoftCap { .. }
                | Op::SelectColumns { .. }
                | Op::ScaleByPosition { .. }
                | Op::SelectOutputs { .. } => {}
            }
        }
        Ok(uses.into_iter().map(|found| found.unwrap_or(Self::Narrow)).collect())
    }

    /// The layout of a tensor that is kept in chunks.
    fn blocks(self, tensor: &Tensor<'_>) -> Option<BlockLayout> {
        match self {
            Self::Narrow | Self::Wide => None,
            Self::Matrix => tensor.format().is_quantized().then(|| BlockLayout::of(tensor)),
            Self::Stack => Some(BlockLayout::of(tensor)),
        }
    }

    /// Bytes of a tensor on the device.
    pub(crate) fn bytes(self, tensor: &Tensor<'_>) -> u64 {
        let elements = tensor.shape().rows() as u64 * tensor.shape().cols() as u64;
        match (self.blocks(tensor), self) {
            (Some(layout), _) => layout.bytes() as u64,
            (None, Self::Wide) => elements * 4,
            (None, _) => elements * 2,
        }
    }

    /// Brings a tensor to the device.
    ///
    /// # Errors
    ///
    /// The device's.
    pub(crate) fn place(
        self,
        device: &mut Device,
        tensor: &Tensor<'_>,
        half: bool,
    ) -> Result<Placed, BackendError> {
        let blocks = self.blocks(tensor);
        let address = match (&blocks, self) {
            (Some(layout), _) => device.upload(&layout.pack(tensor, half))?,
            (None, Self::Wide) => device.upload(cast_slice::<f32, u8>(&tensor.to_f32()))?,
            (None, _) => {
                let bits: Vec<u16> = tensor.to_f32().iter().map(|&x| narrow(x, half)).collect();
                device.upload(&bits)?
            }
        };
        Ok(Placed { address, blocks, shape: tensor.shape().dims() })
    }
}
