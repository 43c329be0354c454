//! Which distribution this is (os-release(5)).

use std::fs;

/// A distribution whose package names are known, or any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distro {
    /// Debian 12, bookworm.
    Debian12,
    /// Debian 13, trixie.
    Debian13,
    /// Ubuntu 24.04, noble.
    Ubuntu2404,
    /// Its name, as it calls itself.
    Other(String),
}

impl Distro {
    /// This machine's.
    pub fn read() -> Distro {
        let text = fs::read_to_string("/etc/os-release")
            .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
            .unwrap_or_default();
        Distro::parse(&text)
    }

    fn parse(text: &str) -> Distro {
        let field = |key: &str| -> &str {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map_or("", |value| value.trim().trim_matches(['"', '\'']))
        };
        match (field("ID"), field("VERSION_ID")) {
            ("debian", "12") => Distro::Debian12,
            ("debian", "13") => Distro::Debian13,
            ("ubuntu", "24.04") => Distro::Ubuntu2404,
            ("", _) => Distro::Other("an unnamed Linux".into()),
            (id, version) => Distro::Other(format!("{id} {version}").trim().to_string()),
        }
    }

    /// For people.
    pub fn title(&self) -> String {
        match self {
            Distro::Debian12 => "Debian 12".into(),
            Distro::Debian13 => "Debian 13".into(),
            Distro::Ubuntu2404 => "Ubuntu 24.04".into(),
            Distro::Other(name) => format!("{name} (its packages are not known here)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distributions_are_recognized() {
        let debian =
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(Distro::parse(debian), Distro::Debian12);
        assert_eq!(Distro::parse("ID=debian\nVERSION_ID=\"13\"\n"), Distro::Debian13);
        let ubuntu = "ID=ubuntu\nID_LIKE=debian\nVERSION_ID='24.04'\n";
        assert_eq!(Distro::parse(ubuntu), Distro::Ubuntu2404);
    }

    #[test]
    fn anything_else_keeps_its_name() {
        assert_eq!(Distro::parse("ID=fedora\nVERSION_ID=41\n"), Distro::Other("fedora 41".into()));
        assert_eq!(Distro::parse("ID=debian\nVERSION_ID=11"), Distro::Other("debian 11".into()));
        assert_eq!(Distro::parse(""), Distro::Other("an unnamed Linux".into()));
    }
}
