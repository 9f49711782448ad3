"""Everything that moves bytes and time: the engine, its conversations and caches; in packages of their own what is
downloaded, what is planned for a machine, and how weights come to where they are used."""
