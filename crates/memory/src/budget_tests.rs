//! Texts that are budgets, texts that are not, and the way back.

use super::*;
use proptest::prelude::*;

fn bytes(bytes: u64) -> Result<MemoryBudget, BudgetError> {
    Ok(MemoryBudget::Bytes(bytes))
}

fn share(hundredths: u16) -> Result<MemoryBudget, BudgetError> {
    Ok(MemoryBudget::Share(Percent::from_hundredths(hundredths).unwrap()))
}

#[test]
fn reads_what_users_write() {
    let cases = [
        ("auto", Ok(MemoryBudget::Auto)),
        (" AUTO ", Ok(MemoryBudget::Auto)),
        ("1", bytes(1)),
        ("134217728", bytes(128 << 20)),
        ("100B", bytes(100)),
        ("100b", bytes(100)),
        ("1k", bytes(1024)),
        ("1K", bytes(1024)),
        ("1KB", bytes(1000)),
        ("1kb", bytes(1000)),
        ("1KiB", bytes(1024)),
        ("128M", bytes(128 << 20)),
        ("128MB", bytes(128_000_000)),
        ("128MiB", bytes(128 << 20)),
        ("128 mib", bytes(128 << 20)),
        ("2G", bytes(2 << 30)),
        ("2GB", bytes(2_000_000_000)),
        ("1.5GiB", bytes(3 << 29)),
        ("0.5K", bytes(512)),
        ("1.0001B", bytes(1)),
        ("1.99999999999999999999K", bytes(2047)),
        ("3T", bytes(3 << 40)),
        ("3TB", bytes(3_000_000_000_000)),
        ("18446744073709551615", bytes(u64::MAX)),
        ("70%", share(7000)),
        ("12.5 %", share(1250)),
        ("100%", share(10_000)),
        ("0.01%", share(1)),
    ];
    let wrong: Vec<_> = cases
        .into_iter()
        .map(|(text, want)| (text, text.parse::<MemoryBudget>(), want))
        .filter(|(_, got, want)| got != want)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn refuses_the_rest_and_says_how_to_write_it() {
    let not_a_number = |text: &str| BudgetError::NotANumber { text: text.into() };
    let too_large = |text: &str| BudgetError::TooLarge { text: text.into() };
    let percent = |text: &str| BudgetError::Percent { text: text.into() };
    let unit = |text: &str, unit: &str| BudgetError::UnknownUnit { text: text.into(), unit: unit.into() };
    let cases = [
        ("", BudgetError::Empty),
        ("   ", BudgetError::Empty),
        ("-5", not_a_number("-5")),
        ("+5", not_a_number("+5")),
        ("MiB", not_a_number("MiB")),
        ("automatic", not_a_number("automatic")),
        (".5G", not_a_number(".5G")),
        ("5.", not_a_number("5.")),
        ("1.2.3M", not_a_number("1.2.3M")),
        ("NaN", not_a_number("NaN")),
        ("١٢M", not_a_number("١٢M")),
        ("%", not_a_number("%")),
        ("1e9", unit("1e9", "e9")),
        ("12XB", unit("12XB", "XB")),
        ("12Mb/s", unit("12Mb/s", "Mb/s")),
        ("12 M B", unit("12 M B", "M B")),
        ("1,5G", unit("1,5G", ",5G")),
        ("5%%", unit("5%%", "%%")),
        ("0", BudgetError::Zero { text: "0".into() }),
        ("0.4B", BudgetError::Zero { text: "0.4B".into() }),
        ("0GiB", BudgetError::Zero { text: "0GiB".into() }),
        ("18446744073709551616", too_large("18446744073709551616")),
        ("16777216T", too_large("16777216T")),
        (
            "99999999999999999999999999999999999999999999G",
            too_large("99999999999999999999999999999999999999999999G"),
        ),
        ("0%", percent("0%")),
        ("0.001%", percent("0.001%")),
        ("100.01%", percent("100.01%")),
        ("1000000%", percent("1000000%")),
    ];
    let mut wrong = Vec::new();
    for (text, want) in cases {
        match text.parse::<MemoryBudget>() {
            Err(error) if error == want && error.to_string().ends_with(HINT) => {}
            got => wrong.push((text, got, want)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

proptest! {
    #[test]
    fn what_is_written_reads_back(n in 1_u64.., shift in 0_u32..64, hundredths in 1_u16..=10_000) {
        let bytes = MemoryBudget::Bytes((n >> shift).max(1));
        prop_assert_eq!(bytes.to_string().parse(), Ok(bytes));
        let round = MemoryBudget::Bytes((n >> 44).max(1) << 20);
        prop_assert_eq!(round.to_string().parse(), Ok(round));
        let share = MemoryBudget::Share(Percent::from_hundredths(hundredths).unwrap());
        prop_assert_eq!(share.to_string().parse(), Ok(share));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,24}", number in "[0-9.]{0,60}[%a-zA-Z ]{0,4}") {
        let _ = text.parse::<MemoryBudget>();
        let _ = number.parse::<MemoryBudget>();
    }

    #[test]
    fn a_share_is_never_more_than_the_whole(total: u64, hundredths in 1_u16..=10_000) {
        let share = Percent::from_hundredths(hundredths).unwrap();
        prop_assert!(share.of(total) <= total);
    }
}
