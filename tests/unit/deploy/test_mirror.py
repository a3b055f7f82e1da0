"""What ``make mirror`` gathers."""

import runpy

from tests.unit.deploy import playbook

tool = runpy.run_path(str(playbook.ANSIBLE / "tools/gather_mirror.py"))
for_hosts = tool["for_hosts"]
LOCK = """always==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
early==2.0 ; python_full_version < '3.11.3' \\
    --hash=sha256:bb
late==3.0 ; python_full_version >= '3.12' and sys_platform == 'linux' \\
    --hash=sha256:cc
other==4.0 ; sys_platform == 'win32' \\
    --hash=sha256:dd
"""


def test_hosts_with_another_patch_level_than_this_machine_s_find_their_wheels() -> None:
    assert for_hosts(LOCK, "3.11") == (
        "always==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab\nearly==2.0 \\\n    --hash=sha256:bb\n"
    )
    assert "late==3.0 \\\n" in for_hosts(LOCK, "3.12")


def test_whatever_lock_an_inventory_may_name_for_its_release_is_gathered() -> None:
    extras = {"redis.txt", "otel.txt"}
    assert {path.name for path in tool["locks"]("cuda")} == {"build.txt", "vllm-cuda.txt"} | extras
