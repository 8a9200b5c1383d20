//! The time that a template can ask for. The caller says what time it is; nothing here reads a clock.

/// A date and a time of day, in whatever zone the caller chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CivilTime {
    /// Year of the common era.
    pub year: i64,
    /// 1–12
    pub month: u8,
    /// 1–31
    pub day: u8,
    /// 0–23
    pub hour: u8,
    /// 0–59
    pub minute: u8,
    /// 0–59
    pub second: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const SECONDS_PER_DAY: i64 = 86_400;

impl CivilTime {
    /// The time in UTC, from seconds since 1970.
    #[must_use]
    pub fn from_unix(seconds: i64) -> Self {
        let (days, second_of_day) =
            (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        // Years start in March here, so that the leap day is the last of a year; 400 of them are 146,097 days.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Self {
            year,
            month: month as u8,
            day: day as u8,
            hour: (second_of_day / 3600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
        }
    }

    /// Writes the time as C's `strftime` does, in English.
    /// # Errors
    /// What is wrong with the format or the time.
    pub(super) fn format(self, format: &str) -> Result<String, String> {
        let is_possible = (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60
            && (-9999..=9999).contains(&self.year);
        if !is_possible {
            return Err(format!("{self:?} is no time"));
        }
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next().ok_or("the format ends with a single `%`")?;
            let is_bare = directive == '-';
            if is_bare {
                directive = chars.next().ok_or("the format ends with `%-`")?;
            }
            let text = self.directive(directive).ok_or(format!("`%{directive}` is not supported"))?;
            let bare = text.trim_start_matches(['0', ' ']);
            out.push_str(if is_bare && !bare.is_empty() {
                bare
            } else if is_bare {
                "0"
            } else {
                &text
            });
        }
        Ok(out)
    }

    fn directive(self, directive: char) -> Option<String> {
        let Self { year, month, day, hour, minute, second } = self;
        let month_name = MONTHS[usize::from(month - 1)];
        let weekday = WEEKDAYS[self.days_since_1970().rem_euclid(7) as usize];
        let hour_of_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
        Some(match directive {
            'Y' => format!("{year}"),
            'y' => format!("{:02}", year.rem_euclid(100)),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'H' => format!("{hour:02}"),
            'I' => format!("{hour_of_12:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'j' => format!(
                "{:03}",
                self.days_since_1970() - Self { month: 1, day: 1, ..self }.days_since_1970() + 1
            ),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    fn days_since_1970(self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let month_from_march = i64::from(self.month + if self.month > 2 { 0 } else { 12 }) - 3;
        let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_are_inverse() {
        for days in (-800_000..800_000).step_by(37) {
            let time = CivilTime::from_unix(days * SECONDS_PER_DAY);
            assert_eq!(time.days_since_1970(), days, "{time:?}");
        }
    }

    #[test]
    fn formats() {
        let time = CivilTime::from_unix(1_709_210_096);
        let cases = [
            ("%Y-%m-%d %H:%M:%S", "2024-02-29 12:34:56"),
            ("%d %b %Y", "29 Feb 2024"),
            ("%A, %B %-d", "Thursday, February 29"),
            ("%I:%M %p %j %y %a %%", "12:34 PM 060 24 Thu %"),
            ("%F %T %R %D", "2024-02-29 12:34:56 12:34 02/29/24"),
        ];
        for (format, want) in cases {
            assert_eq!(time.format(format).as_deref(), Ok(want), "{format}");
        }
        assert!(time.format("%Q").is_err());
        assert!(time.format("%").is_err());
        assert!(CivilTime { month: 0, ..time }.format("%B").is_err());
        assert_eq!(CivilTime::from_unix(-1).format("%F %T").as_deref(), Ok("1969-12-31 23:59:59"));
        assert_eq!(CivilTime { hour: 0, ..time }.format("%-H %-I").as_deref(), Ok("0 12"));
    }
}
