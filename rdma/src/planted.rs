//! Defects on purpose, to try the simulation with (`cargo xtask sim --planted`).
//!
//! A planted defect is a name at the place where it would be made. In a build without the cfg
//! `outboard_planted`, which nothing but that task sets, it is `false` and costs nothing.

/// The defect that this process makes; empty: none.
#[cfg(outboard_planted)]
pub static PLANTED: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Whether the defect of this name is to be made.
#[macro_export]
macro_rules! planted {
    ($name:literal) => {{
        #[cfg(outboard_planted)]
        {
            $crate::PLANTED.get().is_some_and(|planted| planted == $name)
        }
        #[cfg(not(outboard_planted))]
        {
            false
        }
    }};
}
