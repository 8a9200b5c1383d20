//! The two residual streams of a prune job: the teacher's (base model) and the student's (pruned prefix).
//!
//! Each has two files that swap roles from layer to layer: a layer reads one and writes the other, so a kill
//! inside a layer leaves its input whole. The student shares the teacher's file until the first change.

use crate::calibration::{CalibrationSet, WINDOW_LEN};
use crate::checkpoint::WorkDir;
use crate::error::PruneError;
use crate::spill::Spill;
use secateur_engine::Embedding;
use secateur_model::{WeightId, WeightRole, WeightSource};

/// Tokens that are looked up before the pages they touched are given back: the system maps 64 KiB around each.
const LOOKUPS: usize = 64;

/// Names of the files of a stream, by parity of the layer that reads them.
const TEACHER_FILES: [&str; 2] = ["spill-teacher-0", "spill-teacher-1"];
const STUDENT_FILES: [&str; 2] = ["spill-student-0", "spill-student-1"];

/// Teacher and student hidden states of every calibration window.
#[derive(Debug)]
pub(crate) struct Streams {
    teacher: [Spill; 2],
    student: [Spill; 2],
    work: WorkDir,
}

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Teacher,
    Student,
}

impl Streams {
    pub(crate) fn open(work: &WorkDir, hidden_size: usize) -> Result<Self, PruneError> {
        let open = |name: &str| {
            let path = work.file(name);
            Spill::open(&path, hidden_size).map_err(|source| PruneError::Io { path, source })
        };
        Ok(Self {
            teacher: [open(TEACHER_FILES[0])?, open(TEACHER_FILES[1])?],
            student: [open(STUDENT_FILES[0])?, open(STUDENT_FILES[1])?],
            work: work.clone(),
        })
    }

    fn pair(&self, side: Side) -> (&[Spill; 2], &'static [&'static str; 2]) {
        match side {
            Side::Teacher => (&self.teacher, &TEACHER_FILES),
            Side::Student => (&self.student, &STUDENT_FILES),
        }
    }

    /// Reads window `window_idx` as it enters layer `layer_idx`.
    pub(crate) fn read(
        &self,
        side: Side,
        layer_idx: usize,
        window_idx: usize,
        out: &mut [f32],
    ) -> Result<(), PruneError> {
        let (files, names) = self.pair(side);
        let parity = layer_idx % 2;
        files[parity]
            .read(window_idx * WINDOW_LEN, out)
            .map_err(|source| PruneError::Io { path: self.work.file(names[parity]), source })
    }

    /// Writes window `window_idx` as it enters layer `layer_idx`.
    pub(crate) fn write(
        &self,
        side: Side,
        layer_idx: usize,
        window_idx: usize,
        rows: &[f32],
    ) -> Result<(), PruneError> {
        let (files, names) = self.pair(side);
        let parity = layer_idx % 2;
        files[parity]
            .write(window_idx * WINDOW_LEN, rows)
            .map_err(|source| PruneError::Io { path: self.work.file(names[parity]), source })
    }

    /// Makes the input of layer `layer_idx` survive a crash.
    pub(crate) fn sync(&self, layer_idx: usize) -> Result<(), PruneError> {
        for side in [Side::Teacher, Side::Student] {
            let (files, names) = self.pair(side);
            let parity = layer_idx % 2;
            files[parity]
                .sync()
                .map_err(|source| PruneError::Io { path: self.work.file(names[parity]), source })?;
        }
        Ok(())
    }

    /// Fills the input of layer 0 with the embeddings of the calibration set.
    pub(crate) fn embed(&self, source: &dyn WeightSource, set: &CalibrationSet) -> Result<(), PruneError> {
        let embedding = Embedding::new(source)?;
        let hidden_size = source.config().hidden_size;
        let mut rows = vec![0.0; WINDOW_LEN * hidden_size];
        for window_idx in 0..set.n_windows() {
            embed_window(source, &embedding, set.window(window_idx), &mut rows)?;
            self.write(Side::Teacher, 0, window_idx, &rows)?;
            self.write(Side::Student, 0, window_idx, &rows)?;
        }
        self.sync(0)
    }
}

/// Fills `rows` `[n, hidden_size]` with the embeddings of `tokens`; no more of the token table is in memory than some of
/// them need.
pub(crate) fn embed_window(
    source: &dyn WeightSource,
    embedding: &Embedding,
    tokens: &[u32],
    rows: &mut [f32],
) -> Result<(), PruneError> {
    let hidden_size = source.config().hidden_size;
    for (tokens, rows) in tokens.chunks(LOOKUPS).zip(rows.chunks_mut(LOOKUPS * hidden_size)) {
        embedding.lookup(tokens, rows)?;
        source.give_back(WeightId::global(WeightRole::EmbedTokens));
    }
    Ok(())
}
