//! Quantized matrices that stay quantized on the devices.
//!
//! A matrix of a linear layer whose format has integer levels lies on the devices as bytes, one for
//! each level, with an f32 scale (and minimum) for each group of inputs and output; the step multiplies
//! them out where the matrix is used, so that only the matrix in use takes more. Bytes a weight, for a
//! group of `g` inputs: `1 + 4 / g`, and `4 / g` more with minima; 1.125 in Q8_0, 1.25 in Q4_K. Other
//! matrices expand to the element type of the activations: those of the vocabulary, stacks of experts,
//! matrices whose heads move or whose groups the devices would cut, and formats of floats.

use backend_api::{
    program::{Program, WeightId},
    weights::{BlockFields, Format, Levels, Tensor},
};

use super::{
    placement::{PlacedWeight, Placement, Source},
    step::Lowering,
};
use crate::stablehlo::{Element, Type, Value};

/// How a matrix that stays quantized is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Inputs that share a scale.
    group: usize,
    has_minima: bool,
}

impl Packed {
    /// How matrices of a format are kept, if its levels are integers of a byte.
    fn of(format: Format) -> Option<Self> {
        let fields = format.fields(&vec![0; format.block_bytes()])?;
        match fields.levels {
            Levels::Less(_) | Levels::Signed | Levels::Integers(_) => Some(Self {
                group: format.group_elements(),
                has_minima: fields.minimum_of(0).is_some(),
            }),
            Levels::Floats(_) | Levels::F8 => None,
        }
    }
}

impl Placement {
    /// Keeps the matrices of linear layers quantized that can be. `format` tells how a weight is
    /// stored.
    pub(crate) fn keep_quantized(
        &mut self,
        program: &Program,
        format: impl Fn(&str) -> Option<Format>,
    ) {
        for (weight, placed) in program.weights().iter().zip(&mut self.weights) {
            let [inputs, _] = placed.kind.dims[..] else { continue };
            let is_whole = |source: &Source| source.from == [Some(0)];
            if !placed.transposed || !placed.sources.iter().all(is_whole) {
                continue;
            }
            let Some(packed) = format(&weight.name).and_then(Packed::of) else { continue };
            let cuts_groups = placed.sharding.dim() == Some(0)
                && !inputs.is_multiple_of(packed.group * self.devices);
            if !cuts_groups && inputs.is_multiple_of(packed.group) {
                placed.packed = Some(packed);
                placed.kind = Type::new(Element::I8, &placed.kind.dims);
            }
        }
    }
}

impl PlacedWeight {
    /// The arrays that the devices hold: the weight alone, or its levels, scales and minima.
    pub(crate) fn arrays(&self) -> Vec<PlacedWeight> {
        let plain = PlacedWeight { packed: None, ..self.clone() };
        let (Some(packed), [inputs, outputs]) = (self.packed, &self.kind.dims[..]) else {
            return vec![plain];
        };
        let mut scales = plain.clone();
        let groups = inputs / packed.group;
        scales.kind = Type::new(Element::F32, &[groups, *outputs]);
        scales.sources[0] = Source { run: groups, from: vec![Some(0)] };
        let minima = packed.has_minima.then(|| scales.clone());
        [plain, scales].into_iter().chain(minima).collect()
    }

    /// Bytes of all of them, over all devices together.
    pub(crate) fn byte_len(&self) -> u64 {
        self.arrays().iter().map(|array| array.kind.byte_len()).sum()
    }

    /// What the arrays of a weight that stays quantized hold, in the file's order of dimensions.
    pub(crate) fn pack(&self, tensor: &Tensor<'_>) -> Vec<Vec<u8>> {
        let (format, group) = (tensor.format(), tensor.format().group_elements());
        let (mut levels, mut scales, mut minima) = (Vec::new(), Vec::new(), Vec::new());
        let blocks = tensor.data().chunks_exact(format.block_bytes());
        for fields in blocks.filter_map(|block| format.fields(block)) {
            let quants = &fields.quants[..format.block_elements()];
            levels.extend(quants.iter().map(|&quant| level(&fields, quant).cast_unsigned()));
            for index in 0..quants.len() / group {
                scales.extend(fields.scale_of(index).to_le_bytes());
                minima.extend(fields.minimum_of(index).unwrap_or_default().to_le_bytes());
            }
        }
        vec![levels, scales, minima]
    }
}

fn level(fields: &BlockFields, quant: u8) -> i8 {
    // Levels of the formats that are kept are whole numbers of a byte; a cast saturates.
    fields.levels.value(quant, fields.zero) as i8
}

impl Lowering<'_> {
    /// A weight's matrix in the element type of the activations, multiplied out if it is quantized.
    pub(super) fn matrix(&mut self, weight: WeightId, element: Element) -> Value {
        let first = self.arrays[weight.index()];
        let levels = self.weights[weight.index()].clone();
        let Some(packed) = self.placement.weights[weight.index()].packed else { return levels };
        let array = |index: usize| self.all_arrays[first + index].clone();
        let (scales, minima) = (array(1), packed.has_minima.then(|| array(2)));
        let (inputs, outputs) = (levels.dim(0), levels.dim(1));
        let f = &mut self.function;
        let levels = f.convert(&levels, Element::F32);
        let levels = f.reshape(&levels, &[inputs / packed.group, packed.group, outputs]);
        let scales = f.broadcast_to(&scales, &levels, &[0, 2]);
        let mut matrix = f.multiply(&levels, &scales);
        if let Some(minima) = minima {
            let minima = f.broadcast_to(&minima, &matrix, &[0, 2]);
            matrix = f.add(&matrix, &minima);
        }
        let matrix = f.reshape(&matrix, &[inputs, outputs]);
        f.convert(&matrix, element)
    }
}

#[cfg(test)]
mod tests {
    use backend_api::{
        program::{ProgramBuilder, Split},
        weights::Shape,
    };

    use super::*;

    const INPUTS: usize = 512;
    const OUTPUTS: usize = 32;

    fn placement(format: Format, split: Split, devices: usize) -> Placement {
        let mut b = ProgramBuilder::new("packed", 64);
        b.page_group(1, 16, None);
        let x = b.embed("embedding", INPUTS, 1.0);
        let x = b.linear(x, "matrix", OUTPUTS, split);
        let x = b.select_outputs(x);
        let program = b.finish_with_logits(x, "output", None).expect("a program");
        let mut placement = Placement::new(&program, devices, Element::F32).expect("it divides");
        placement.keep_quantized(&program, |_| Some(format));
        placement
    }

    fn packed(placement: &Placement) -> Vec<&PlacedWeight> {
        placement.weights.iter().filter(|weight| weight.packed.is_some()).collect()
    }

    #[test]
    fn matrices_of_linear_layers_with_integer_levels_stay_quantized() {
        for format in Format::ALL {
            let placement = placement(format, Split::Columns, 2);
            let is_kept = Packed::of(format).is_some();
            assert_eq!(packed(&placement).len(), usize::from(is_kept), "{format}");
            let floats = [
                Format::F32,
                Format::F16,
                Format::BF16,
                Format::F8_E4M3,
                Format::NF4,
                Format::NVFP4,
            ];
            assert_eq!(is_kept, !floats.contains(&format), "{format}");
        }
        let placement = placement(Format::Q4_K, Split::Columns, 1);
        let arrays = packed(&placement)[0].arrays();
        let kinds: Vec<_> = arrays.iter().map(|array| array.kind.clone()).collect();
        let scales = Type::new(Element::F32, &[INPUTS / 32, OUTPUTS]);
        assert_eq!(kinds, [Type::new(Element::I8, &[INPUTS, OUTPUTS]), scales.clone(), scales]);
        assert_eq!(packed(&placement)[0].byte_len(), (INPUTS * OUTPUTS * 10 / 8) as u64);
    }

    #[test]
    fn groups_that_devices_would_cut_expand() {
        for (devices, kept) in [(2, 1), (16, 1), (32, 0)] {
            let placement = placement(Format::Q8_0, Split::Rows, devices);
            assert_eq!(packed(&placement).len(), kept, "{devices} devices");
        }
    }

    #[test]
    fn levels_and_scales_multiply_out_to_the_weights() {
        let values: Vec<f32> =
            (0..INPUTS * OUTPUTS).map(|i| ((i * 7919) % 1009) as f32 / 300.0 - 1.6).collect();
        for format in Format::ALL.into_iter().filter(|&format| Packed::of(format).is_some()) {
            let shape = Shape::matrix(OUTPUTS, INPUTS);
            let tensor = Tensor::from_f32(format, shape, &values).expect("whole blocks");
            let placement = placement(format, Split::None, 1);
            let arrays = packed(&placement)[0].pack(&tensor);
            let group = format.group_elements();
            let floats = |bytes: &[u8], index: usize| {
                f32::from_le_bytes(bytes.as_chunks().0.get(index).copied().expect("as many"))
            };
            for (index, expected) in tensor.to_f32().into_iter().enumerate() {
                let level = f32::from(arrays[0][index].cast_signed());
                let scaled = level * floats(&arrays[1], index / group);
                assert_eq!(scaled + floats(&arrays[2], index / group), expected, "{format}");
            }
        }
    }
}
