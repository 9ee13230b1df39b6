//! Vectors of embedding requests, put together from the parts that steps compute.

use hashbrown::HashMap;

use crate::backend::Pooling;
use crate::schedule::SequenceId;

/// Owns the vectors that are not complete.
#[derive(Debug, Default)]
pub(super) struct Embeddings {
    by_sequence: HashMap<SequenceId, Partial>,
}

/// The weighted mean of the parts so far.
#[derive(Debug)]
struct Partial {
    normalize: bool,
    /// Positions that the parts stand for.
    positions: u32,
    sum: Vec<f64>,
}

impl Embeddings {
    pub(super) fn open(&mut self, id: SequenceId, pooling: Pooling) {
        let partial = Partial { normalize: pooling.normalize, positions: 0, sum: Vec::new() };
        self.by_sequence.insert(id, partial);
    }

    /// A step has computed the vector of a run of so many positions.
    pub(super) fn add(&mut self, id: SequenceId, positions: u32, vector: &[f32]) {
        let Some(partial) = self.by_sequence.get_mut(&id) else { return };
        partial.sum.resize(vector.len(), 0.0);
        for (sum, &value) in partial.sum.iter_mut().zip(vector) {
            *sum += f64::from(value) * f64::from(positions);
        }
        partial.positions += positions;
    }

    /// The sequence has ended. Its vector, if all parts have come.
    pub(super) fn close(&mut self, id: SequenceId) -> Option<Vec<f32>> {
        let Partial { normalize, positions, sum } = self.by_sequence.remove(&id)?;
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        let divisor = if normalize { length } else { f64::from(positions) };
        let divisor = if divisor == 0.0 { 1.0 } else { divisor };
        Some(sum.iter().map(|value| (value / divisor) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::PoolKind;
    use crate::schedule::RequestId;

    #[test]
    fn the_mean_of_parts_is_the_mean_of_all_their_positions() {
        let id = SequenceId { request: RequestId(1), index: 0 };
        for (normalize, expected) in [(false, [3.0, 4.0]), (true, [0.6, 0.8])] {
            let mut embeddings = Embeddings::default();
            embeddings.open(id, Pooling { kind: PoolKind::Mean, normalize });
            embeddings.add(id, 1, &[9.0, 1.0]);
            embeddings.add(id, 3, &[1.0, 5.0]);
            assert_eq!(embeddings.close(id).unwrap(), expected);
            assert_eq!(embeddings.close(id), None);
        }
    }
}
