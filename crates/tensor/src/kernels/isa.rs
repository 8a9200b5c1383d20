//! Which instruction set runs the kernels, found once at run time.

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
#[cfg(target_arch = "aarch64")]
use super::simd::{BASE, DOT, I8MM, Neon};
use super::simd::{Portable, Simd};
use std::sync::OnceLock;

/// A kernel that can run on any instruction set; implementations mark `run` `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set that this machine has; the variants hold the proof.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Isa {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni(Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512<true>),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<BASE>),
    #[cfg(target_arch = "aarch64")]
    NeonDot(Neon<DOT>),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(Neon<I8MM>),
}

impl Isa {
    /// The best set of this machine.
    #[inline]
    pub(crate) fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::all().last().copied().unwrap_or(Self::Portable(Portable)))
    }

    /// Every set of this machine, the best last.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::new().map(Self::Avx2));
            all.extend(Avx2::new().map(Self::Avx2Vnni));
            all.extend(Avx512::new().map(Self::Avx512));
            all.extend(Avx512::new().map(Self::Avx512Vnni));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(Neon::new().map(Self::Neon));
            all.extend(Neon::new().map(Self::NeonDot));
            all.extend(Neon::new().map(Self::NeonI8mm));
        }
        all
    }

    /// Name for reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2+fma+f16c",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni(_) => "avx2+fma+f16c+avxvnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512f+bw+vl",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => "avx512f+bw+vl+vnni",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot(_) => "neon+dotprod",
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(_) => "neon+dotprod+i8mm",
        }
    }

    /// Runs `kernel` compiled for this set; the instructions for products of bytes are left out.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable(simd) => simd.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni(simd) => simd.base().call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(simd) => simd.base().call(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.call(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot(simd) => simd.base().call(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(simd) => simd.base().call(kernel),
        }
    }

    /// Runs `kernel` compiled for this set with all it has: for kernels that multiply bytes.
    #[inline]
    pub(crate) fn dispatch_bytes<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni(simd) => simd.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(simd) => simd.call(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot(simd) => simd.call(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(simd) => simd.call(kernel),
            other => other.dispatch(kernel),
        }
    }
}

/// f32 values in one vector.
pub(crate) struct Lanes;

impl Kernel for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> usize {
        S::LANES
    }
}

/// What the kernels run on, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// Instruction set.
    pub isa: &'static str,
    /// f32 values in one vector.
    pub f32_lanes: usize,
}

/// The instruction set that runs the kernels of this process.
#[must_use]
pub fn active_isa() -> KernelInfo {
    let isa = Isa::detect();
    KernelInfo { isa: isa.name(), f32_lanes: isa.dispatch(Lanes) }
}
