"`python -m mdprop`: the command, where `mdprop` is not on the path."

from mdprop.cli import main

if __name__ == "__main__":
    main()
