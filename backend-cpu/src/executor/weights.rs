//! Weights in memory, repacked for the kernels.

use std::collections::{BTreeSet, HashMap};

use backend_api::{
    BackendError, Compute,
    kit::check_weight_shape,
    program::{Op, Program, Weight, WeightId},
    weights::{Shape, Tensor, Weights, WeightsError},
};

use super::BACKEND;
use crate::kernels::matrix::Matrix;

/// Index of a matrix in [`LoadedWeights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixId(usize);

/// Index of a vector in [`LoadedWeights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VectorId(usize);

/// Index of a stack of matrices in [`LoadedWeights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StackId(usize);

/// The weights of all programs of an executor. One that several programs name is there once.
#[derive(Debug, Default)]
pub(crate) struct LoadedWeights {
    matrices: Vec<Matrix>,
    vectors: Vec<Vec<f32>>,
    stacks: Vec<Vec<Matrix>>,
    by_name: HashMap<String, WeightPlace>,
}

#[derive(Clone, Copy, Debug)]
enum WeightPlace {
    Matrix(MatrixId),
    Vector(VectorId),
    Stack(StackId),
}

impl LoadedWeights {
    /// Reads the weights of a program, matrices for a precision; those of `fast` are what
    /// [`Compute::Auto`] chooses from. A norm without a weight gets one of
    /// ones.
    ///
    /// # Errors
    /// A weight that is missing or has another shape.
    pub(crate) fn load<'a>(
        &mut self,
        program: &'a Program,
        weights: &dyn Weights,
        (compute, fast): (Compute, &[Compute]),
    ) -> Result<WeightPlaces<'a>, BackendError> {
        let mut places = Vec::with_capacity(program.weights().len());
        let exact = kept_exact(program);
        for (index, weight) in program.weights().iter().enumerate() {
            let (format, shape) = weights.describe(&weight.name)?;
            check_weight_shape(weight, shape)?;
            let place = match self.by_name.get(&weight.name) {
                Some(known) => *known,
                None => {
                    let compute = match exact.contains(&index) {
                        true => Compute::Exact,
                        false => compute.of(format, fast),
                    };
                    self.add(&weight.name, &weights.tensor(&weight.name)?, compute)?
                }
            };
            self.by_name.insert(weight.name.clone(), place);
            places.push(place);
        }
        let ones = |run: u32| {
            self.vectors.push(vec![1.0; run as usize]);
            (run, VectorId(self.vectors.len() - 1))
        };
        let ones = runs_of_ones(program).into_iter().map(ones).collect();
        Ok(WeightPlaces { program, places, ones })
    }

    fn add(
        &mut self,
        name: &str,
        tensor: &Tensor<'_>,
        compute: Compute,
    ) -> Result<WeightPlace, BackendError> {
        let inconsistent = |source| WeightsError::Tensor { name: name.to_owned(), source };
        Ok(match tensor.shape() {
            Shape::Vector(_) => {
                self.vectors.push(tensor.to_f32());
                WeightPlace::Vector(VectorId(self.vectors.len() - 1))
            }
            Shape::Matrix { .. } => {
                self.matrices.push(Matrix::pack(tensor, compute).map_err(inconsistent)?);
                WeightPlace::Matrix(MatrixId(self.matrices.len() - 1))
            }
            Shape::Stack { count, .. } => {
                let pack = |index| Matrix::pack(&tensor.matrix(index)?, compute);
                let stack: Result<_, _> = (0..count).map(pack).collect();
                self.stacks.push(stack.map_err(inconsistent)?);
                WeightPlace::Stack(StackId(self.stacks.len() - 1))
            }
        })
    }

    pub(crate) fn matrix(&self, id: MatrixId) -> &Matrix {
        &self.matrices[id.0]
    }

    pub(crate) fn vector(&self, id: VectorId) -> &[f32] {
        &self.vectors[id.0]
    }

    /// One matrix for each expert.
    pub(crate) fn stack(&self, id: StackId) -> &[Matrix] {
        &self.stacks[id.0]
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        let stacked = self.stacks.iter().flatten();
        let matrices = self.matrices.iter().chain(stacked).map(|matrix| matrix.bytes() as u64);
        let vectors = self.vectors.iter().map(|vector| size_of_val(vector.as_slice()) as u64);
        matrices.chain(vectors).sum()
    }
}

/// Matrices, by index, that are exact in any precision: routers, since a small change may choose
/// another expert, and the biases of experts, which multiply nothing.
fn kept_exact(program: &Program) -> Vec<usize> {
    let mixtures = program.ops().iter().filter_map(|op| match op {
        Op::MixtureOfExperts(mixture) => Some(mixture),
        _ => None,
    });
    let mut exact = Vec::new();
    for mixture in mixtures {
        let layers = [mixture.gate, mixture.up, mixture.down];
        exact.extend(layers.iter().filter_map(|layer| layer.bias).map(WeightId::index));
        exact.extend(program.ops().iter().filter_map(|op| match op {
            Op::Linear { weight, out, .. } if *out == mixture.scores => Some(weight.index()),
            _ => None,
        }));
    }
    exact
}

/// Bytes that the weights of a program take once they are loaded for a precision.
///
/// # Errors
/// A weight that is missing, can't be read or has another shape.
pub(crate) fn loaded_bytes(
    program: &Program,
    weights: &dyn Weights,
    (compute, fast): (Compute, &[Compute]),
) -> Result<u64, BackendError> {
    let exact = kept_exact(program);
    let mut bytes: usize =
        runs_of_ones(program).iter().map(|run| *run as usize * size_of::<f32>()).sum();
    for (index, weight) in program.weights().iter().enumerate() {
        let (format, shape) = weights.describe(&weight.name)?;
        check_weight_shape(weight, shape)?;
        let compute = match exact.contains(&index) {
            true => Compute::Exact,
            false => compute.of(format, fast),
        };
        bytes += match shape {
            Shape::Vector(len) => len * size_of::<f32>(),
            Shape::Matrix { rows, cols } => Matrix::bytes_of(format, (rows, cols), compute),
            Shape::Stack { count, rows, cols } => {
                count * Matrix::bytes_of(format, (rows, cols), compute)
            }
        };
    }
    Ok(bytes as u64)
}

/// The lengths of norms without a weight, each once.
fn runs_of_ones(program: &Program) -> BTreeSet<u32> {
    let run = |op: &Op| match op {
        Op::RmsNorm { weight: None, run, .. } => Some(*run),
        _ => None,
    };
    program.ops().iter().filter_map(run).collect()
}

/// Where a program's weights are.
#[derive(Debug)]
pub(crate) struct WeightPlaces<'a> {
    program: &'a Program,
    /// By [`WeightId`].
    places: Vec<WeightPlace>,
    /// By length.
    ones: HashMap<u32, VectorId>,
}

impl WeightPlaces<'_> {
    /// A weight that must be a matrix.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn matrix(&self, weight: WeightId) -> Result<MatrixId, BackendError> {
        match self.places.get(weight.index()) {
            Some(WeightPlace::Matrix(id)) => Ok(*id),
            _ => Err(self.unsupported(weight, "as a matrix")),
        }
    }

    /// A weight that must be a vector.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn vector(&self, weight: WeightId) -> Result<VectorId, BackendError> {
        match self.places.get(weight.index()) {
            Some(WeightPlace::Vector(id)) => Ok(*id),
            _ => Err(self.unsupported(weight, "as a vector")),
        }
    }

    /// The weight of a norm over runs of `run` values.
    ///
    /// # Errors
    /// If it is no vector.
    pub(crate) fn norm(
        &self,
        weight: Option<WeightId>,
        run: u32,
    ) -> Result<VectorId, BackendError> {
        match (weight, self.ones.get(&run)) {
            (Some(weight), _) => self.vector(weight),
            (None, Some(ones)) => Ok(*ones),
            (None, None) => Err(BackendError::Unsupported {
                backend: BACKEND,
                what: format!("a norm over {run} values without a weight"),
            }),
        }
    }

    /// Rows of each matrix of a stack.
    ///
    /// # Errors
    /// If it is no stack.
    pub(crate) fn rows_of_stack(&self, weight: WeightId) -> Result<usize, BackendError> {
        let declared = self.program.weights().get(weight.index());
        match declared.map(|weight| &weight.shape[..]) {
            Some(&[_, rows, _]) => Ok(rows),
            _ => Err(self.unsupported(weight, "as a stack of matrices")),
        }
    }

    /// A weight that must be a stack of matrices.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn stack(&self, weight: WeightId) -> Result<StackId, BackendError> {
        match self.places.get(weight.index()) {
            Some(WeightPlace::Stack(id)) => Ok(*id),
            _ => Err(self.unsupported(weight, "as a stack of matrices")),
        }
    }

    /// Places of weights that aren't loaded, for a program that is compiled to be measured.
    pub(crate) fn planned(program: &Program) -> WeightPlaces<'_> {
        let place = |(index, weight): (usize, &Weight)| match weight.shape.len() {
            1 => WeightPlace::Vector(VectorId(index)),
            2 => WeightPlace::Matrix(MatrixId(index)),
            _ => WeightPlace::Stack(StackId(index)),
        };
        WeightPlaces {
            program,
            places: program.weights().iter().enumerate().map(place).collect(),
            ones: runs_of_ones(program).into_iter().map(|run| (run, VectorId(0))).collect(),
        }
    }

    fn unsupported(&self, weight: WeightId, kind: &str) -> BackendError {
        let name = self.program.weights().get(weight.index()).map(|weight| &weight.name);
        BackendError::Unsupported { backend: BACKEND, what: format!("weight {name:?} {kind}") }
    }
}
