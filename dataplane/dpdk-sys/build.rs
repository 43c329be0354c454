//! Binds the few functions and types that are used to the machine's own DPDK, and compiles the
//! shims of those that are inline functions of its headers. Does nothing without `link`.

#[cfg(not(feature = "link"))]
fn main() {}

#[cfg(feature = "link")]
fn main() {
    for file in ["build.rs", "shim.c", "shim.h"] {
        println!("cargo:rerun-if-changed={file}");
    }
    if let Err(reason) = link::build() {
        eprintln!(
            "\nerror: cannot build against DPDK: {reason}\n\
             The feature `dpdk` needs DPDK 22.11 or newer and libclang: `cargo xtask setup`, or\n  \
             apt-get install -y --no-install-recommends libdpdk-dev libclang-19-dev pkg-config\n\
             Without the feature nothing of DPDK is needed.\n"
        );
        std::process::exit(1);
    }
}

#[cfg(feature = "link")]
mod link {
    use std::path::PathBuf;
    use std::process::Command;

    /// What is called: functions of the libraries, and the shims.
    const FUNCTIONS: &str = "rte_eal_(init|iova_mode)|rte_extmem_register|rte_strerror|\
        rte_mem_virt2iova|rte_dev_(probe|remove|dma_map|dma_unmap)|rte_eal_hotplug_remove|\
        rte_eth_dev_(get_port_by_name|info_get|configure|start|stop|close|get_mtu)|\
        rte_eth_dev_adjust_nb_rx_tx_desc|rte_eth_(rx|tx)_queue_setup|\
        rte_eth_promiscuous_enable|rte_pktmbuf_pool_create|rte_pktmbuf_pool_create_extbuf|\
        rte_mempool_(free|avail_count)|rte_thread_(un)?register|shim_.*";
    /// Structures whose fields are used; those of others are opaque.
    const TYPES: &str = "rte_(pktmbuf_extmem|eth_conf|eth_dev_info)|outboard_.*";
    /// The libraries; drivers are loaded by EAL from its own directory.
    const LIBRARIES: [&str; 5] = ["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_eal", "rte_log"];

    pub fn build() -> Result<(), String> {
        let library = pkg_config::Config::new()
            .cargo_metadata(false)
            .atleast_version("22.11")
            .probe("libdpdk")
            .map_err(|error| error.to_string())?;
        let flags = flags()?;
        let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
        find_libclang();
        bindgen::Builder::default()
            .header("shim.h")
            .clang_args(&flags)
            .allowlist_function(FUNCTIONS)
            .allowlist_type(TYPES)
            .allowlist_var("OUTBOARD_.*")
            // Packed inside aligned, which Rust has not.
            .opaque_type("rte_mbuf|rte_mempool|rte_device|rte_arp_.*|rte_l2tpv2_.*|rte_gtp_.*")
            .prepend_enum_name(false)
            .derive_default(true)
            .generate_comments(false)
            .layout_tests(true)
            .generate()
            .map_err(|error| error.to_string())?
            .write_to_file(out.join("raw.rs"))
            .map_err(|error| error.to_string())?;
        let mut shim = cc::Build::new();
        // The headers' own inline functions are not ours to mend.
        shim.file("shim.c").opt_level(3).warnings(false).flag("-Wno-deprecated-declarations");
        for flag in &flags {
            shim.flag(flag);
        }
        shim.try_compile("outboard_dpdk_shim").map_err(|error| error.to_string())?;
        for path in &library.link_paths {
            println!("cargo:rustc-link-search=native={}", path.display());
        }
        let named = |name: &&&str| library.libs.iter().any(|found| found == **name);
        for name in LIBRARIES.iter().filter(named) {
            println!("cargo:rustc-link-lib=dylib={name}");
        }
        Ok(())
    }

    /// The compiler flags as they are: the crate drops `-include rte_config.h` and `-march`, on
    /// which the layout of structures depends.
    fn flags() -> Result<Vec<String>, String> {
        let output = Command::new("pkg-config").args(["--cflags", "libdpdk"]).output();
        let output = output.map_err(|error| format!("pkg-config: {error}"))?;
        let text = String::from_utf8(output.stdout).map_err(|error| error.to_string())?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// Debian keeps each libclang in a directory of its own, and some machines have newer ones
    /// without the library.
    fn find_libclang() {
        if std::env::var_os("LIBCLANG_PATH").is_some() {
            return;
        }
        println!("cargo:rerun-if-env-changed=LIBCLANG_PATH");
        let found =
            (14..=19).rev().map(|version| format!("/usr/lib/llvm-{version}/lib")).find(|path| {
                PathBuf::from(path).join("libclang.so.1").exists()
                    || PathBuf::from(path).join("libclang.so").exists()
            });
        if let Some(path) = found {
            // SAFETY: a build script has one thread here, and nothing reads the environment
            // meanwhile.
            #[allow(unsafe_code)]
            unsafe {
                std::env::set_var("LIBCLANG_PATH", path);
            }
        }
    }
}
