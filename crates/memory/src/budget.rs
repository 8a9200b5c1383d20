//! The budget as users write it: `auto`, a number of bytes, or a share of all memory.
//!
//! Units: `KiB MiB GiB TiB` are powers of 1024, `KB MB GB TB` powers of 1000, and the bare letters
//! `K M G T` powers of 1024, as systemd reads them in `MemoryMax=`. Case does not matter.

use crate::MemoryStatus;
use crate::size::{format_bytes, format_exact};
use std::fmt;
use std::str::FromStr;

/// Digits after the point that are looked at; more than enough for a byte in a tebibyte.
const MAX_FRACTION_DIGITS: usize = 13;

/// How many bytes of memory we allow ourselves: a bound on the peak resident set of the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MemoryBudget {
    /// What the device can give, less the reserve.
    #[default]
    Auto,
    /// Exactly this many.
    Bytes(u64),
    /// A share of the memory this process may ever have.
    Share(Percent),
}

/// A share in hundredths of a per cent, `1..=10_000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u16);

impl Percent {
    /// A share of `hundredths` hundredths of a per cent; `None` outside `1..=10_000`.
    #[must_use]
    pub fn from_hundredths(hundredths: u16) -> Option<Self> {
        (1..=10_000).contains(&hundredths).then_some(Self(hundredths))
    }

    /// This share of `bytes`, rounded down.
    #[must_use]
    pub fn of(self, bytes: u64) -> u64 {
        let share = u128::from(bytes) * u128::from(self.0) / 10_000;
        u64::try_from(share).expect("a share of at most one is no larger than the whole")
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:02}", self.0 / 100, self.0 % 100);
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// What every message about a budget ends with.
const HINT: &str = "write `auto`, bytes such as `128MiB` or `134217728`, or a share such as `70%`";

/// Why a text is not a budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// Nothing there.
    #[error("the memory budget is empty: {HINT}")]
    Empty,
    /// Does not start with a plain decimal number.
    #[error("memory budget `{text}` is not a number with a unit: {HINT}")]
    NotANumber {
        /// What was written.
        text: String,
    },
    /// The number is followed by something unknown.
    #[error(
        "memory budget `{text}` has the unknown unit `{unit}`, known are B, K, KB, KiB to T, TB, TiB: {HINT}"
    )]
    UnknownUnit {
        /// What was written.
        text: String,
        /// What follows the number.
        unit: String,
    },
    /// Less than one byte.
    #[error("memory budget `{text}` is less than one byte: {HINT}")]
    Zero {
        /// What was written.
        text: String,
    },
    /// Does not fit into 64 bits.
    #[error("memory budget `{text}` is beyond any memory: {HINT}")]
    TooLarge {
        /// What was written.
        text: String,
    },
    /// Not a share of memory.
    #[error("memory budget `{text}` must be more than 0% (at least 0.01%) and at most 100%: {HINT}")]
    Percent {
        /// What was written.
        text: String,
    },
}

impl FromStr for MemoryBudget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(BudgetError::Empty);
        }
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim_start());
        let text = || text.to_owned();
        let number = Decimal::parse(number).map_err(|error| match error {
            DecimalError::NotANumber => BudgetError::NotANumber { text: text() },
            DecimalError::TooLarge => BudgetError::TooLarge { text: text() },
        })?;
        if unit == "%" {
            let hundredths = number.times(100).and_then(|value| u16::try_from(value).ok());
            let share = hundredths.and_then(Percent::from_hundredths);
            return share.map(Self::Share).ok_or_else(|| BudgetError::Percent { text: text() });
        }
        let Some(factor) = unit_bytes(unit) else {
            return Err(BudgetError::UnknownUnit { text: text(), unit: unit.to_owned() });
        };
        match number.times(factor).and_then(|bytes| u64::try_from(bytes).ok()) {
            Some(0) => Err(BudgetError::Zero { text: text() }),
            Some(bytes) => Ok(Self::Bytes(bytes)),
            None => Err(BudgetError::TooLarge { text: text() }),
        }
    }
}

impl fmt::Display for MemoryBudget {
    /// A text that reads back as the same budget.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => f.write_str(&format_exact(*bytes)),
            Self::Share(share) => share.fmt(f),
        }
    }
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if matches!(unit.as_str(), "" | "b") {
        return Some(1);
    }
    let mut rest = unit.chars();
    let power = match rest.next()? {
        'k' => 1,
        'm' => 2,
        'g' => 3,
        't' => 4,
        _ => return None,
    };
    match rest.as_str() {
        "" | "ib" => Some(1024_u64.pow(power)),
        "b" => Some(1000_u64.pow(power)),
        _ => None,
    }
}

/// A non-negative decimal number, exact.
struct Decimal {
    /// The digits, point left out.
    digits: u128,
    /// `10^` digits after the point.
    scale: u128,
}

enum DecimalError {
    NotANumber,
    TooLarge,
}

impl Decimal {
    fn parse(text: &str) -> Result<Self, DecimalError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
            return Err(DecimalError::NotANumber);
        }
        let fraction = &fraction[..fraction.len().min(MAX_FRACTION_DIGITS)];
        let whole: u64 = whole.parse().map_err(|_| DecimalError::TooLarge)?;
        let scale = 10_u128.pow(fraction.len() as u32);
        let fraction: u128 = fraction.parse().map_err(|_| DecimalError::NotANumber)?;
        Ok(Self { digits: u128::from(whole) * scale + fraction, scale })
    }

    /// The number times `factor`, rounded down.
    fn times(&self, factor: u64) -> Option<u128> {
        Some(self.digits.checked_mul(u128::from(factor))? / self.scale)
    }
}

/// A budget in bytes on a certain device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedBudget {
    /// Bound on the peak resident set of the whole process.
    pub budget_bytes: u64,
    /// Where the number comes from, in words.
    pub explanation: String,
    /// Set when the device cannot give that much; the user's word is kept all the same.
    pub warning: Option<String>,
}

impl MemoryBudget {
    /// What this budget means on the device that `status` describes.
    ///
    /// A share is one of [`MemoryStatus::reachable_bytes`]: in a container, of the container's memory.
    #[must_use]
    pub fn resolve(self, status: &MemoryStatus) -> ResolvedBudget {
        let (budget_bytes, explanation) = match self {
            Self::Auto => (status.auto_budget_bytes, status.auto_explanation()),
            Self::Bytes(bytes) => (bytes, "as asked".to_owned()),
            Self::Share(share) => {
                let whole = status.reachable_bytes;
                (share.of(whole), format!("{share} of {}", format_bytes(whole)))
            }
        };
        let over = status.available_bytes < budget_bytes;
        let warning = over.then(|| {
            format!(
                "the budget of {} is more than the {} that {} leaves to this process: it may be killed or swap",
                format_bytes(budget_bytes),
                format_bytes(status.available_bytes),
                status.binding_limit().source,
            )
        });
        ResolvedBudget { budget_bytes, explanation, warning }
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
