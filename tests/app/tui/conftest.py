"""Every test has its own folders, and no clipboard of this machine."""

from support.home import home as home
