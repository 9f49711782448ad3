"""What an engine in the background inherits."""

from dslite.runtime.warm.launcher import engine_environment


def test_tokens_keys_and_flags_are_not_inherited() -> None:
    secrets = "HF_TOKEN HUGGING_FACE_HUB_TOKEN OPENAI_API_KEY MY_KEY AWS_SECRET_ACCESS_KEY DB_PASSWORD SSH_AUTH_SOCK"
    flags = "DSLITE_TEMPERATURE DSLITE_MODEL DSLITE_NO_WARM DSLITE_API_KEY_ENV"
    kept = {"PATH": "/bin", "HOME": "/root", "HF_HUB_OFFLINE": "1", "DSLITE_DATA_DIR": "/data", "OMP_NUM_THREADS": "1"}
    given = kept | dict.fromkeys(f"{secrets} {flags}".split(), "secret")
    assert engine_environment(given) == kept


def test_folders_are_absolute_since_the_engine_runs_elsewhere() -> None:
    found = engine_environment({"DSLITE_CACHE_DIR": "here", "HF_HOME": "there", "DSLITE_DATA_DIR": ""})
    assert found["DSLITE_CACHE_DIR"].endswith("/here")
    assert found["DSLITE_CACHE_DIR"].startswith("/")
    assert found["HF_HOME"].startswith("/")
    assert found["DSLITE_DATA_DIR"] == ""
